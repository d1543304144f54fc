#include "linear.h"

#include <torch/library.h>

#include "binding.h"
#include "sparse_rule.h"
#include "streamed_product.h"

namespace persimmon::cpu {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_, const OptionalTensor& bias,
                  const OptionalTensor& residual, bool relu2) {
  check_weight(x, weight_);
  const Product p = make_product(x, weight_.size(0), weight_.size(1), bias, residual, relu2);
  if (p.y.numel() == 0) return p.y;
  const bool hidden_major = !weight_.is_contiguous() && weight_.t().is_contiguous();
  const at::Tensor weight = hidden_major ? weight_ : weight_.contiguous();
  if (p.M > kFewRows) {
    dense_product(p, weight);
  } else if (hidden_major) {
    hidden_major_product(p, weight, /*all_rows=*/true);
  } else {
    few_rows_product(linear_kernel(), WeightFormat::elements, p, weight, {});
  }
  return p.y;
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) { m.impl("linear", linear); }

}  // namespace persimmon::cpu
