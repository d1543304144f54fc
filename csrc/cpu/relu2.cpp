#include "kernels/relu2.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "binding.h"
#include "huge_pages.h"

namespace persimmon::cpu {
namespace {

at::Tensor apply(const at::Tensor* grad_, const at::Tensor& x_, const OptionalTensor& bias_) {
  const DType dtype = dtype_of(x_, "x");
  if (grad_ != nullptr) check_like(*grad_, "grad", x_, "x", x_.sizes());
  if (bias_) {
    TORCH_CHECK_VALUE(x_.dim() >= 1, "x must have at least one dimension where a bias is given, got a scalar.");
    check_like(*bias_, "bias", x_, "x", {x_.size(-1)});
  }
  const at::Tensor x = x_.contiguous();
  const at::Tensor grad = grad_ != nullptr ? grad_->contiguous() : at::Tensor();
  const at::Tensor bias = bias_ ? bias_->contiguous() : at::Tensor();
  const at::Tensor y = on_huge_pages(at::empty_like(x));
  if (x.numel() == 0) return y;
  const int64_t F = bias.defined() ? x.size(-1) : x.numel();  // without a bias, one long row
  const Relu2Params params{
      .grad = grad.defined() ? grad.const_data_ptr() : nullptr,
      .x = x.const_data_ptr(),
      .bias = bias.defined() ? bias.const_data_ptr() : nullptr,
      .y = y.mutable_data_ptr(),
      .F = F,
      .dtype = dtype,
  };
  const int64_t blocks = x.numel() / F * ((F + kRelu2Block - 1) / kRelu2Block);
  parallel(relu2_kernel(), params, blocks, std::min(F, kRelu2Block) * x.element_size());
  return y;
}

at::Tensor relu2(const at::Tensor& x, const OptionalTensor& bias) { return apply(nullptr, x, bias); }

at::Tensor relu2_backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& bias) {
  return apply(&grad, x, bias);
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("relu2", relu2);
  m.impl("relu2_backward", relu2_backward);
}

}  // namespace
}  // namespace persimmon::cpu
