#include "sparse_linear.cuh"
#include "sparse_linear_kernel.cuh"

namespace persimmon::cuda {

// The kernel is in sparse_linear_kernel.cuh.
// Occupancy: sparse_linear_kernel 256 threads x 2 blocks, 0 B

int64_t sparse_linear_splits(int64_t F, int weight_bits) {
  return weight_bits == 16  ? sparse_splits<PlainWeight<simt::bf16>>(F)
         : weight_bits == 8 ? sparse_splits<Int8Weight>(F)
                            : sparse_splits<Int4Weight>(F);
}

int64_t sparse_linear_arrivals(int64_t M, int64_t C, int weight_bits) {
  return weight_bits == 16  ? sparse_arrivals<PlainWeight<simt::bf16>>(M, C)
         : weight_bits == 8 ? sparse_arrivals<Int8Weight>(M, C)
                            : sparse_arrivals<Int4Weight>(M, C);
}

cudaError_t launch_sparse_linear(const SparseLinearParams& params, simt::Dtype dtype, cudaStream_t stream) {
  switch (dtype) {
    case simt::Dtype::kBFloat16:
      return launch_sparse_format<simt::bf16, PlainWeight<simt::bf16>>(params, stream);
    case simt::Dtype::kFloat16:
      return launch_sparse_format<simt::fp16, PlainWeight<simt::fp16>>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace persimmon::cuda
