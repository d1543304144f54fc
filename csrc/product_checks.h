// Checks shared by the bindings of the products (linear, sparse_linear and their quantised forms) x W^T with x [..., K]
// and W [N, K], on any device. None reads a value.
#pragma once

#include <optional>
#include <vector>

#include "checks.h"

namespace persimmon {

struct ProductSizes {
  std::vector<int64_t> y;  // [..., N]
  int64_t M;               // rows: all dimensions of x but the last
};

inline ProductSizes check_product(const at::Tensor& x, int64_t N, int64_t K, const std::optional<at::Tensor>& bias,
                                  const std::optional<at::Tensor>& residual) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension, got a scalar.");
  TORCH_CHECK_VALUE(x.size(-1) == K, "x must have the weight's ", K, " columns in its last dimension, got shape ",
                    x.sizes(), ".");
  ProductSizes sizes{x.sizes().vec(), 1};
  sizes.y.back() = N;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) sizes.M *= x.size(i);
  if (bias) check_like(*bias, "bias", x, "x", {N});
  if (residual) check_like(*residual, "residual", x, "x", sizes.y);
  return sizes;
}

// x and weight [N, K] of one dtype and device.
inline void check_weight(const at::Tensor& x, const at::Tensor& weight) {
  check_dim(weight, "weight", 2);
  check_like(weight, "weight", x, "x", weight.sizes());
}

}  // namespace persimmon
