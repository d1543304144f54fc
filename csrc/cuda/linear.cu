#include "linear.cuh"
#include "linear_kernel.cuh"

namespace persimmon::cuda {

// The kernel is in linear_kernel.cuh; up to 8 rows of x (int4: 1) have two blocks.
// Occupancy: linear_kernel 256 threads x 1 blocks, 0 B

cudaError_t launch_linear(const LinearParams& params, simt::Dtype dtype, cudaStream_t stream) {
  switch (dtype) {
    case simt::Dtype::kBFloat16:
      return launch_linear_format<simt::bf16, PlainWeight<simt::bf16>>(params, stream);
    case simt::Dtype::kFloat16:
      return launch_linear_format<simt::fp16, PlainWeight<simt::fp16>>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace persimmon::cuda
