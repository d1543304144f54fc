// What a kernel sees under g++: CUDA's names, implemented by the emulator.
#pragma once
#include "emulator_async.h"
#include "emulator_grid.h"
#include "emulator_hopper.h"
#include "emulator_warp.h"
#include "runtime.h"
#include "shared_memory.h"

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define SIMT_DEVICE inline
#define SIMT_SHARED(type, name, count)                                   \
  static simt::SharedStorage name##_storage(#name, sizeof(type), count); \
  const simt::Shared<type> name(name##_storage)
#define SIMT_DYNAMIC_SHARED(name) constexpr simt::DynamicShared name

#define threadIdx (simt::current_thread().index)
#define blockIdx (simt::block_index())
#define blockDim (simt::block_size())
#define gridDim (simt::grid_size())

namespace simt {

inline void check_aligned(const void* address, size_t bytes, const Where& where) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  fail(bytes == 16 ? "a 16-byte access to an address that is not a multiple of 16"
                   : "an 8-byte access to an address that is not a multiple of 8",
       where);
}
template <class Vector>
Vector load_vector(const void* address, const Where& where) {
  check_aligned(address, sizeof(Vector), where);
  Vector value;
  std::memcpy(&value, address, sizeof(value));
  return value;
}
template <class Vector>
void store_vector(void* address, const Vector& value, const Where& where) {
  check_aligned(address, sizeof(Vector), where);
  std::memcpy(address, &value, sizeof(value));
}
inline uint4 load16(const void* address, const Where& where = Where::current()) {
  return load_vector<uint4>(address, where);
}
inline void store16(void* address, uint4 value, const Where& where = Where::current()) {
  store_vector(address, value, where);
}
inline uint2 load8(const void* address, const Where& where = Where::current()) {
  return load_vector<uint2>(address, where);
}
inline void store8(void* address, uint2 value, const Where& where = Where::current()) {
  store_vector(address, value, where);
}

template <class T>
uint4 load_shared16(Shared<T> place, const Where& where = Where::current()) {
  uint4 value;
  std::memcpy(&value, place.storage().read(place.offset(), sizeof(value), where), sizeof(value));
  return value;
}
// An atomic here too, though fibers never run at once: ThreadSanitizer would take plain additions for a race.
inline void atomic_add(uint64_t* address, uint64_t value) { __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }
inline uint32_t atomic_add(Shared<uint32_t> place, uint32_t value, const Where& where = Where::current()) {
  void* const word = place.storage().update(place.offset(), sizeof(value), where);
  return __atomic_fetch_add(static_cast<uint32_t*>(word), value, __ATOMIC_RELAXED);
}
inline float fast_exp2(float x) { return std::exp2(x); }

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t, const Args&... args) {
  run(grid, block, 0, [&] { kernel(args...); });
  return cudaSuccess;
}

template <class... Params, class... Args>
cudaError_t launch_shared(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                          const Args&... args) {
  run(grid, block, shared_bytes, [&] { kernel(args...); });
  return cudaSuccess;
}

}  // namespace simt

inline void __syncthreads(const simt::Where& where = simt::Where::current()) { simt::block_barrier(where); }
