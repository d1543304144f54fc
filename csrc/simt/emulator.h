// What a kernel sees under g++: CUDA's names, implemented by the emulator.
#pragma once
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

struct ShuffleArgument {
  uint64_t value;  // in: the lane's value; out: the source lane's
  int source;
};

inline void execute_shuffle(uint32_t mask, void* const (&arguments)[32]) {
  uint64_t values[32];
  for (int lane = 0; lane < 32; ++lane) {
    const bool member = mask >> lane & 1u;
    values[lane] = member ? static_cast<ShuffleArgument*>(arguments[lane])->value : ~uint64_t{0};  // absent lane: NaN
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    auto* argument = static_cast<ShuffleArgument*>(arguments[lane]);
    argument->value = values[argument->source & 31];
  }
}

inline constexpr Collective kSyncWarp{"__syncwarp", true, [](uint32_t, void* const (&)[32]) {}};
inline constexpr Collective kShuffle{"shuffle", false, execute_shuffle};

template <class T>
T shuffle(uint32_t mask, T value, int source, const Where& where) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  ShuffleArgument argument{0, source};
  std::memcpy(&argument.value, &value, sizeof(T));
  warp_collective(mask, kShuffle, &argument, where);
  std::memcpy(&value, &argument.value, sizeof(T));
  return value;
}

inline void check_aligned(const void* address, const Where& where) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0)
    fail("a 16-byte access to an address that is not a multiple of 16", where);
}
inline uint4 load16(const void* address, const Where& where = Where::current()) {
  check_aligned(address, where);
  uint4 value;
  std::memcpy(&value, address, sizeof(value));
  return value;
}
inline void store16(void* address, uint4 value, const Where& where = Where::current()) {
  check_aligned(address, where);
  std::memcpy(address, &value, sizeof(value));
}

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
inline void __syncwarp(uint32_t mask = ~0u, const simt::Where& where = simt::Where::current()) {
  simt::warp_collective(mask, simt::kSyncWarp, nullptr, where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, const simt::Where& where = simt::Where::current()) {
  return simt::shuffle(mask, value, simt::current_thread().lane ^ lane_mask, where);
}
