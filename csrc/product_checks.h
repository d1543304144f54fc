// Checks shared by the bindings of the products (linear, sparse_linear and their quantised forms) x W^T with x [..., K]
// and W [N, K], on any device. None reads a value.
#pragma once

#include <vector>

#include "checks.h"

namespace persimmon {

// Of x [..., K]: all dimensions but the last.
inline int64_t row_count(const at::Tensor& x) {
  int64_t M = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) M *= x.size(i);
  return M;
}

struct ProductSizes {
  std::vector<int64_t> y;  // [..., N]
  int64_t M;               // rows of x
};

inline ProductSizes check_product(const at::Tensor& x, int64_t N, int64_t K, const OptionalTensor& bias,
                                  const OptionalTensor& residual) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension, got a scalar.");
  TORCH_CHECK_VALUE(x.size(-1) == K, "x must have the weight's ", K, " columns in its last dimension, got shape ",
                    x.sizes(), ".");
  ProductSizes sizes{x.sizes().vec(), row_count(x)};
  sizes.y.back() = N;
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
