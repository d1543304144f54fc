#include "linear.cuh"
#include "linear_kernel.cuh"

namespace persimmon::cuda {

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
