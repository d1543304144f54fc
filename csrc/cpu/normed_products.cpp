#include "../normed_products.h"

#include <torch/library.h>

namespace persimmon::cpu {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor norm_linear(const at::Tensor& x, const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps,
                       const at::Tensor& weight, const OptionalTensor& scale, const OptionalTensor& bias) {
  const Norm norm{norm_weight, norm_bias, eps};
  const Weights weights{weight, scale, bias};
  check_norm(x, norm);
  check_scale(weights, "weight");
  return composed_norm_linear(x, norm, weights);
}

at::Tensor norm_mlp(const at::Tensor& x, const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps,
                    const at::Tensor& up_weight, const OptionalTensor& up_scale, const OptionalTensor& up_bias,
                    const at::Tensor& down_weight, const OptionalTensor& down_scale, const OptionalTensor& down_bias) {
  const Norm norm{norm_weight, norm_bias, eps};
  const Weights up{up_weight, up_scale, up_bias}, down{down_weight, down_scale, down_bias};
  check_mlp(x, norm, up, down);
  return composed_norm_mlp(x, norm, up, down);
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("norm_linear", norm_linear);
  m.impl("norm_mlp", norm_mlp);
}

}  // namespace
}  // namespace persimmon::cpu
