// What a kernel sees under nvcc: element types, conversions, shared arrays, launch.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstring>

#define SIMT_DEVICE __device__ __forceinline__
#define SIMT_HOST_DEVICE __host__ __device__ __forceinline__

// A statically sized array in shared memory; declared at the top of a kernel.
#define SIMT_SHARED(type, name, count) __shared__ type name[count]

// The dynamic shared memory of the launch; shared_region() names the parts of it.
#define SIMT_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace simt {

// A pointer to elements in shared memory.
template <class T>
using Shared = T*;

// The part of the dynamic shared memory that starts `offset` bytes into it and holds `count` elements. Regions do not
// overlap; every thread names the same ones. The emulator gives each its own memory and checks every access.
template <class T>
SIMT_DEVICE Shared<T> shared_region(unsigned char* memory, size_t offset, int64_t /*count*/, const char* /*name*/) {
  return reinterpret_cast<T*>(memory + offset);
}

using bf16 = __nv_bfloat16;
using fp16 = __half;

SIMT_HOST_DEVICE float to_float(float value) { return value; }
SIMT_HOST_DEVICE float to_float(bf16 value) { return __bfloat162float(value); }
SIMT_HOST_DEVICE float to_float(fp16 value) { return __half2float(value); }

// Rounds to nearest even.
template <class T>
SIMT_HOST_DEVICE T from_float(float value);
template <>
SIMT_HOST_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
SIMT_HOST_DEVICE bf16 from_float<bf16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
SIMT_HOST_DEVICE fp16 from_float<fp16>(float value) {
  return __float2half_rn(value);
}

// Two 16-bit elements in one word, the first in the low half.
template <class T>
SIMT_DEVICE uint32_t pack2(float low, float high);
template <>
SIMT_DEVICE uint32_t pack2<bf16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}
template <>
SIMT_DEVICE uint32_t pack2<fp16>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}

template <class T>
SIMT_DEVICE float2 unpack2(uint32_t word);
template <>
SIMT_DEVICE float2 unpack2<bf16>(uint32_t word) {
  __nv_bfloat162 pair;
  memcpy(&pair, &word, sizeof(pair));
  return __bfloat1622float2(pair);
}
template <>
SIMT_DEVICE float2 unpack2<fp16>(uint32_t word) {
  __half2 pair;
  memcpy(&pair, &word, sizeof(pair));
  return __half22float2(pair);
}

// 16-byte accesses to global memory; the address is a multiple of 16.
SIMT_DEVICE uint4 load16(const void* address) { return *static_cast<const uint4*>(address); }
SIMT_DEVICE void store16(void* address, uint4 value) { *static_cast<uint4*>(address) = value; }

// The same of 8 bytes; the address is a multiple of 8.
SIMT_DEVICE uint2 load8(const void* address) { return *static_cast<const uint2*>(address); }
SIMT_DEVICE void store8(void* address, uint2 value) { *static_cast<uint2*>(address) = value; }

// 16 bytes of shared memory; the address is a multiple of 16.
template <class T>
SIMT_DEVICE uint4 load_shared16(Shared<T> place) {
  return *reinterpret_cast<const uint4*>(place);
}

// 2^x to 2 units in the last place; denormal results are zero. 2^-inf is 0.
SIMT_DEVICE float fast_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Adds to a word of global memory; integers only, whose sums do not depend on the order.
SIMT_DEVICE void atomic_add(uint64_t* address, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

// The same in shared memory; returns what was there. It orders nothing: a barrier separates it from other accesses.
SIMT_DEVICE uint32_t atomic_add(Shared<uint32_t> place, uint32_t value) { return atomicAdd(place, value); }

// Whether what runs of kKernel on the current device was compiled for sm_90 or later, and is not a translation of code
// for an older architecture. The driver is asked once for every kernel and device.
template <auto kKernel>
bool has_hopper_code() {
  enum Answer { kUnknown, kNo, kYes };
  constexpr int kDevices = 64;
  static std::atomic<Answer> answers[kDevices];
  int device = 0;
  const bool listed = cudaGetDevice(&device) == cudaSuccess && device < kDevices;
  const Answer known = listed ? answers[device].load() : kUnknown;
  if (known != kUnknown) return known == kYes;
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kKernel) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  const bool result = attributes.ptxVersion >= 90;
  if (listed) answers[device] = result ? kYes : kNo;
  return result;
}

// Starts `kernel` on `stream` with `shared_bytes` of dynamic shared memory for each block, and returns the launch's own
// error, which is cleared so that it is reported once.
template <class... Params, class... Args>
cudaError_t launch_shared(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          const Args&... args) {
  constexpr size_t kGrantedBytes = 48 << 10;  // more must be asked for
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kGrantedBytes) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, args...);
  }
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

// The same for a kernel without dynamic shared memory.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream, const Args&... args) {
  return launch_shared(kernel, grid, block, 0, stream, args...);
}

}  // namespace simt
