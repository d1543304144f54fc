#include "sparse_linear.cuh"
#include "sparse_linear_kernel.cuh"

namespace persimmon::cuda {

// The kernel is in sparse_linear_kernel.cuh.
// Occupancy: sparse_linear_kernel 256 threads x 2 blocks, 0 B

int64_t sparse_linear_splits(int64_t F, int weight_bits) { return divide_up(F, 8192 / (128 / weight_bits)); }

cudaError_t launch_sparse_linear(const SparseLinearParams& params, simt::Dtype dtype, cudaStream_t stream) {
  switch (dtype) {
    case simt::Dtype::kBFloat16:
      return launch_sparse_format<simt::bf16, PlainWeight<simt::bf16>>(params, dtype, stream);
    case simt::Dtype::kFloat16:
      return launch_sparse_format<simt::fp16, PlainWeight<simt::fp16>>(params, dtype, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace persimmon::cuda
