#include "../layer_norm.cuh"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "../layer_norm_backward.cuh"
#include "binding.h"

namespace persimmon::cuda {
namespace {

simt::Dtype check(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const simt::Dtype dtype = dtype_of(x, "x");
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension, got a scalar.");
  check_like(weight, "weight", x, "x", {x.size(-1)});
  check_eps(eps);
  return dtype;
}

// x [..., C]; weight, bias [C]. Returns x + residual (undefined without a residual) and its norm, contiguous.
std::tuple<at::Tensor, at::Tensor> norm(const at::Tensor& x_, const at::Tensor* residual_, const at::Tensor& weight_,
                                        const at::Tensor& bias_, double eps, const char* op) {
  const simt::Dtype dtype = check(x_, weight_, eps);
  const int64_t columns = x_.size(-1);
  check_like(bias_, "bias", x_, "x", {columns});
  if (residual_ != nullptr) check_like(*residual_, "residual", x_, "x", x_.sizes());

  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous(), weight = weight_.contiguous(), bias = bias_.contiguous();
  const at::Tensor residual = residual_ != nullptr ? residual_->contiguous() : at::Tensor();
  const at::Tensor out = at::empty_like(x);
  const at::Tensor sum = residual.defined() ? at::empty_like(x) : at::Tensor();
  if (x.numel() == 0) return {sum, out};
  const LayerNormParams params{
      .x = x.const_data_ptr(),
      .residual = data_or_null(residual),
      .weight = weight.const_data_ptr(),
      .bias = bias.const_data_ptr(),
      .sum = sum.defined() ? sum.mutable_data_ptr() : nullptr,
      .out = out.mutable_data_ptr(),
      .rows = x.numel() / columns,
      .columns = columns,
      .eps = static_cast<float>(eps),
  };
  check_launch(launch_layer_norm(params, dtype, current_stream()), op, x, "x");
  return {sum, out};
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  return std::get<1>(norm(x, nullptr, weight, bias, eps, "layer_norm"));
}

std::tuple<at::Tensor, at::Tensor> add_layer_norm(const at::Tensor& x, const at::Tensor& residual,
                                                  const at::Tensor& weight, const at::Tensor& bias, double eps) {
  return norm(x, &residual, weight, bias, eps, "add_layer_norm");
}

// Returns dx [..., C], dweight and dbias [C].
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward(const at::Tensor& grad_, const at::Tensor& x_,
                                                                   const at::Tensor& weight_, double eps) {
  const simt::Dtype dtype = check(x_, weight_, eps);
  check_like(grad_, "grad", x_, "x", x_.sizes());
  const int64_t columns = x_.size(-1);

  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous(), grad = grad_.contiguous(), weight = weight_.contiguous();
  const at::Tensor dx = at::empty_like(x), dweight = at::empty_like(weight), dbias = at::empty_like(weight);
  LayerNormBackwardParams params{
      .grad = grad.const_data_ptr(),
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .dx = dx.mutable_data_ptr(),
      .partials = nullptr,
      .dweight = dweight.mutable_data_ptr(),
      .dbias = dbias.mutable_data_ptr(),
      .rows = columns > 0 ? x.numel() / columns : 0,
      .columns = columns,
      .eps = static_cast<float>(eps),
  };
  const int64_t teams = plan_layer_norm_backward(params, simt::element_bytes(dtype)).teams();
  const at::Tensor partials = at::empty({teams, 2, columns}, x.options().dtype(at::kFloat));
  params.partials = partials.mutable_data_ptr<float>();
  check_launch(launch_layer_norm_backward(params, dtype, current_stream()), "layer_norm_backward", x, "x");
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("layer_norm", TORCH_FN(persimmon::cuda::layer_norm));
  m.impl("add_layer_norm", TORCH_FN(persimmon::cuda::add_layer_norm));
  m.impl("layer_norm_backward", TORCH_FN(persimmon::cuda::layer_norm_backward));
}
