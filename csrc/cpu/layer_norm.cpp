#include "kernels/layer_norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "binding.h"
#include "huge_pages.h"

namespace persimmon::cpu {
namespace {

void check(const at::Tensor& x, const at::Tensor& weight, double eps) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension, got a scalar.");
  check_like(weight, "weight", x, "x", {x.size(-1)});
  check_eps(eps);
}

// Results of so many bytes are stored past the caches: memory need not be read before it is written, a third of what
// moves, and a quarter in the gradient. From 256 rows of the 8B model on, both gain by it, layer_norm also where the
// product that follows is counted.
constexpr int64_t kStreamedBytes = 2 << 20;

int64_t rows_of(const at::Tensor& x) { return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1); }

std::tuple<at::Tensor, at::Tensor> norm(const at::Tensor& x_, const at::Tensor* residual_, const at::Tensor& weight,
                                        const at::Tensor& bias, double eps) {
  check(x_, weight, eps);
  check_like(bias, "bias", x_, "x", {x_.size(-1)});
  if (residual_ != nullptr) check_like(*residual_, "residual", x_, "x", x_.sizes());
  const at::Tensor x = x_.contiguous(), w = weight.contiguous(), b = bias.contiguous();
  const at::Tensor residual = residual_ != nullptr ? residual_->contiguous() : at::Tensor();
  const at::Tensor y = on_huge_pages(at::empty_like(x));
  const at::Tensor sum = residual.defined() ? on_huge_pages(at::empty_like(x)) : at::Tensor();
  const LayerNormParams params{
      .x = x.const_data_ptr(),
      .residual = residual.defined() ? residual.const_data_ptr() : nullptr,
      .weight = w.const_data_ptr(),
      .bias = b.const_data_ptr(),
      .sum = sum.defined() ? sum.mutable_data_ptr() : nullptr,
      .y = y.mutable_data_ptr(),
      .C = x.size(-1),
      .bypass_caches = int64_t(y.nbytes()) >= kStreamedBytes,
      .eps = float(eps),
      .dtype = dtype_of(x, "x"),
  };
  parallel(layer_norm_kernel(), params, rows_of(x), x.size(-1) * x.element_size());
  return {sum, y};
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  return std::get<1>(norm(x, nullptr, weight, bias, eps));
}

std::tuple<at::Tensor, at::Tensor> add_layer_norm(const at::Tensor& x, const at::Tensor& residual,
                                                  const at::Tensor& weight, const at::Tensor& bias, double eps) {
  return norm(x, &residual, weight, bias, eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward(const at::Tensor& grad_, const at::Tensor& x_,
                                                                   const at::Tensor& weight, double eps) {
  check(x_, weight, eps);
  check_like(grad_, "grad", x_, "x", x_.sizes());
  const at::Tensor x = x_.contiguous(), grad = grad_.contiguous(), w = weight.contiguous();
  const int64_t C = x.size(-1), rows = rows_of(x);
  // A fixed number of chunks, whatever the number of threads: the order of summation never changes.
  constexpr int64_t kMaxChunks = 64;
  const int64_t rows_per_chunk = std::max<int64_t>(16, (rows + kMaxChunks - 1) / kMaxChunks);
  const int64_t chunks = (rows + rows_per_chunk - 1) / rows_per_chunk;
  const at::Tensor dx = on_huge_pages(at::empty_like(x));
  const at::Tensor partials = at::empty({chunks, 2, C}, x.options().dtype(at::kFloat));
  const LayerNormBackwardParams params{
      .grad = grad.const_data_ptr(),
      .x = x.const_data_ptr(),
      .weight = w.const_data_ptr(),
      .dx = dx.mutable_data_ptr(),
      .partials = partials.mutable_data_ptr<float>(),
      .rows = rows,
      .C = C,
      .rows_per_chunk = rows_per_chunk,
      .bypass_caches = int64_t(dx.nbytes()) >= kStreamedBytes,
      .eps = float(eps),
      .dtype = dtype_of(x, "x"),
  };
  parallel(layer_norm_backward_kernel(), params, chunks, rows_per_chunk * C * x.element_size());
  const at::Tensor sums = partials.sum(0);
  const auto gradient = [&](int64_t i) {  // a copy each: outputs must not share memory
    return sums[i].to(w.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  };
  return {dx, gradient(0), gradient(1)};
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("layer_norm", layer_norm);
  m.impl("add_layer_norm", add_layer_norm);
  m.impl("layer_norm_backward", layer_norm_backward);
}

}  // namespace
}  // namespace persimmon::cpu
