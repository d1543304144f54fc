#include "../relu2.cuh"

#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "binding.h"

namespace persimmon::cuda {
namespace {

// x [..., F]; grad like x, or null: forward; bias [F]. Returns a contiguous tensor like x.
at::Tensor apply(const at::Tensor* grad_, const at::Tensor& x_, const OptionalTensor& bias_, const char* op) {
  const simt::Dtype dtype = dtype_of(x_, "x");
  if (grad_ != nullptr) check_like(*grad_, "grad", x_, "x", x_.sizes());
  if (bias_) {
    TORCH_CHECK_VALUE(x_.dim() >= 1, "x must have at least one dimension where a bias is given, got a scalar.");
    check_like(*bias_, "bias", x_, "x", {x_.size(-1)});
  }

  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous();
  const at::Tensor grad = grad_ != nullptr ? grad_->contiguous() : at::Tensor();
  const at::Tensor bias = bias_ ? bias_->contiguous() : at::Tensor();
  const at::Tensor out = at::empty_like(x);
  if (x.numel() == 0) return out;
  const int64_t columns = bias.defined() ? x.size(-1) : x.numel();
  const Relu2Params params{
      .grad = data_or_null(grad),
      .x = x.const_data_ptr(),
      .bias = data_or_null(bias),
      .out = out.mutable_data_ptr(),
      .rows = x.numel() / columns,
      .columns = columns,
  };
  check_launch(launch_relu2(params, dtype, current_stream()), op, x, "x");
  return out;
}

at::Tensor relu2(const at::Tensor& x, const OptionalTensor& bias) { return apply(nullptr, x, bias, "relu2"); }

at::Tensor relu2_backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& bias) {
  return apply(&grad, x, bias, "relu2_backward");
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("relu2", TORCH_FN(persimmon::cuda::relu2));
  m.impl("relu2_backward", TORCH_FN(persimmon::cuda::relu2_backward));
}
