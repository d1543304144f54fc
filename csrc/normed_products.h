// What norm_linear and norm_mlp share on all devices: their operands, checks, and the way to a result by other ops,
// which the CPU goes always and a GPU where its kernels do not take the operands.
#pragma once

#include <ATen/core/Tensor.h>

#include "checks.h"

namespace persimmon {

struct Norm {
  const at::Tensor& weight;  // [C]
  const at::Tensor& bias;    // [C]
  double eps;
};

// Of a product. The weight's dtype says which: codes, int8 or uint8 (two of int4), have a scale; others have x's dtype.
struct Weights {
  const at::Tensor& weight;
  const OptionalTensor& scale;
  const OptionalTensor& bias;

  bool are_codes() const { return weight.scalar_type() == at::kChar || weight.scalar_type() == at::kByte; }
};

// The norm fits x [..., C], and `weights`, called `name`, have a scale if they are codes and only then.
void check_norm(const at::Tensor& x, const Norm& norm);
void check_scale(const Weights& weights, const char* name);

// The operands of norm_mlp fit x [..., C], which its output is added to.
void check_mlp(const at::Tensor& x, const Norm& norm, const Weights& up, const Weights& down);

// layer_norm(x) W^T + bias; W as linear, linear_int8 and linear_int4 have it.
at::Tensor composed_norm_linear(const at::Tensor& x, const Norm& norm, const Weights& weights);

// x + max(layer_norm(x) up^T + up_bias, 0)^2 down^T + down_bias; down as sparse_linear and its quantised forms have it.
at::Tensor composed_norm_mlp(const at::Tensor& x, const Norm& norm, const Weights& up, const Weights& down);

// The ops as a device registers them, from what it makes of checked operands.
template <at::Tensor (*product)(const at::Tensor& x, const Norm& norm, const Weights& weights)>
at::Tensor norm_linear(const at::Tensor& x, const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps,
                       const at::Tensor& weight, const OptionalTensor& scale, const OptionalTensor& bias) {
  const Norm norm{norm_weight, norm_bias, eps};
  const Weights weights{weight, scale, bias};
  check_norm(x, norm);
  check_scale(weights, "weight");
  return product(x, norm, weights);
}

template <at::Tensor (*mlp)(const at::Tensor& x, const Norm& norm, const Weights& up, const Weights& down)>
at::Tensor norm_mlp(const at::Tensor& x, const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps,
                    const at::Tensor& up_weight, const OptionalTensor& up_scale, const OptionalTensor& up_bias,
                    const at::Tensor& down_weight, const OptionalTensor& down_scale, const OptionalTensor& down_bias) {
  const Norm norm{norm_weight, norm_bias, eps};
  const Weights up{up_weight, up_scale, up_bias}, down{down_weight, down_scale, down_bias};
  check_mlp(x, norm, up, down);
  return mlp(x, norm, up, down);
}

}  // namespace persimmon
