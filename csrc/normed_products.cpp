#include "normed_products.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace persimmon {
namespace {

using T = const at::Tensor&;
using OptionalT = const OptionalTensor&;

template <class Signature>
c10::TypedOperatorHandle<Signature> op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

at::Tensor layer_norm(const at::Tensor& x, const Norm& norm) {
  static const auto layer_norm = op<at::Tensor(T, T, T, double)>("persimmon_ext::layer_norm");
  return layer_norm.call(x, norm.weight, norm.bias, norm.eps);
}

at::Tensor dense(const at::Tensor& x, const Weights& w, bool relu2) {
  using OnCodes = at::Tensor(T, T, T, OptionalT, OptionalT, bool);
  static const auto linear = op<at::Tensor(T, T, OptionalT, OptionalT, bool)>("persimmon_ext::linear");
  static const auto linear_int8 = op<OnCodes>("persimmon_ext::linear_int8");
  static const auto linear_int4 = op<OnCodes>("persimmon_ext::linear_int4");
  if (!w.are_codes()) return linear.call(x, w.weight, w.bias, {}, relu2);
  const auto& on_codes = w.weight.scalar_type() == at::kChar ? linear_int8 : linear_int4;
  return on_codes.call(x, w.weight, *w.scale, w.bias, {}, relu2);
}

at::Tensor sparse(const at::Tensor& x, const Weights& w, const at::Tensor& residual) {
  using OnCodes = at::Tensor(T, T, T, OptionalT, OptionalT);
  static const auto sparse_linear = op<at::Tensor(T, T, OptionalT, OptionalT)>("persimmon_ext::sparse_linear");
  static const auto sparse_linear_int8 = op<OnCodes>("persimmon_ext::sparse_linear_int8");
  static const auto sparse_linear_int4 = op<OnCodes>("persimmon_ext::sparse_linear_int4");
  if (!w.are_codes()) return sparse_linear.call(x, w.weight, w.bias, residual);
  const auto& on_codes = w.weight.scalar_type() == at::kChar ? sparse_linear_int8 : sparse_linear_int4;
  return on_codes.call(x, w.weight, *w.scale, w.bias, residual);
}

}  // namespace

void check_norm(const at::Tensor& x, const Norm& norm) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension, got a scalar.");
  check_like(norm.weight, "norm_weight", x, "x", {x.size(-1)});
  check_like(norm.bias, "norm_bias", x, "x", {x.size(-1)});
  check_eps(norm.eps);
}

void check_scale(const Weights& weights, const char* name) {
  const char* const dtype = dtype_name(weights.weight.scalar_type());
  TORCH_CHECK_VALUE(weights.are_codes() == weights.scale.has_value(), name, " is ", dtype, ", and must ",
                    weights.are_codes() ? "come with a scale, got None." : "come without a scale, got one.");
}

void check_mlp(const at::Tensor& x, const Norm& norm, const Weights& up, const Weights& down) {
  check_norm(x, norm);
  check_scale(up, "up");
  check_scale(down, "down");
  check_dim(down.weight, "down", 2);
  const int64_t values = down.weight.scalar_type() == at::kByte ? 2 : 1;  // in a byte
  const int64_t features = down.are_codes() ? down.weight.size(1) * values : down.weight.size(0);
  TORCH_CHECK_VALUE(features == x.size(-1), "down must have x's ", x.size(-1), " output features, got ", features, ".");
}

at::Tensor composed_norm_linear(const at::Tensor& x, const Norm& norm, const Weights& weights) {
  return dense(layer_norm(x, norm), weights, /*relu2=*/false);
}

at::Tensor composed_norm_mlp(const at::Tensor& x, const Norm& norm, const Weights& up, const Weights& down) {
  return sparse(dense(layer_norm(x, norm), up, /*relu2=*/true), down, x);
}

}  // namespace persimmon
