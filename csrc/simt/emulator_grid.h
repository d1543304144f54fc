// Programmatic dependent launch and arrival of blocks under g++; device_grid.h says what each does.
#pragma once
#include "predecessor.h"

namespace simt {

inline void let_successor_start() {}
inline void prefetch_l2(const void*) {}

template <auto kKernel, class... Args>
cudaError_t launch_dependent(dim3 grid, dim3 block, cudaStream_t, const Args&... args) {
  const DependentLaunch launch;
  run(grid, block, 0, [&] { kKernel(args...); });
  return cudaSuccess;
}

// Blocks run one after the other, so there is nothing to fence.
inline uint32_t arrive(uint32_t* counter) { return (*counter)++; }
inline void fence_writes() {}
inline void fence_reads() {}

}  // namespace simt
