#include "sparse_linear.cuh"
#include "sparse_linear_kernel.cuh"

namespace persimmon::cuda {

cudaError_t launch_sparse_linear_int8(const SparseLinearParams& params, simt::Dtype dtype, cudaStream_t stream) {
  switch (dtype) {
    case simt::Dtype::kBFloat16:
      return launch_sparse_format<simt::bf16, Int8Weight>(params, stream);
    case simt::Dtype::kFloat16:
      return launch_sparse_format<simt::fp16, Int8Weight>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace persimmon::cuda
