// What reaches beyond a block: the kernels in front of and behind this one (programmatic dependent launch, sm_90 and
// later), and the order in which the blocks of a kernel arrive somewhere.
//
// A kernel started by launch_dependent may begin before the kernel in front of it on the stream has ended, and keeps
// to:
//   - every thread calls wait_for_predecessors, before its first access to memory that another kernel writes or reads.
//     So such a kernel ends after all that were in front of it, and a wait for it is a wait for those too;
//   - before that, weights may be fetched into the L2 cache only: a register would not see what a kernel in front of
//     this one still writes to them, whereas the L2 cache is where all writes arrive.
// With a predecessor that never calls let_successor_start, or where this kernel was started by launch, the wait is over
// when it begins.
#pragma once

namespace simt {

// Until all kernels in front of this one have ended, and this thread sees what they wrote.
SIMT_DEVICE void wait_for_predecessors() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel behind may begin as soon as every block of this one has called this or ended.
SIMT_DEVICE void let_successor_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Brings the 128 bytes around a global address into the L2 cache, where that can overlap with a wait for predecessors.
SIMT_DEVICE void prefetch_l2([[maybe_unused]] const void* address) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

// As launch, without waiting for the kernel in front where the GPU, and the kernel's code, can wait themselves.
template <auto kKernel, class... Args>
cudaError_t launch_dependent(dim3 grid, dim3 block, cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = has_hopper_code<kKernel>() ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kKernel, args...);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

// Counts the calling block in at `counter`, and returns how many were there before. One thread calls it, after a
// barrier behind which every thread has called fence_writes; blocks that were there before have then made their writes
// visible to the threads that call fence_reads after the next barrier.
SIMT_DEVICE uint32_t arrive(uint32_t* counter) { return atomicAdd(counter, 1u); }
SIMT_DEVICE void fence_writes() { __threadfence(); }
SIMT_DEVICE void fence_reads() { __threadfence(); }

}  // namespace simt
