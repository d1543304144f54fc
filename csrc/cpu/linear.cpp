#include "linear.h"

#include <torch/library.h>

#include "binding.h"
#include "sparse_rule.h"

namespace persimmon::cpu {
namespace {

void check_weight(const at::Tensor& x, const at::Tensor& weight) {
  check_dim(weight, "weight", 2);
  check_like(weight, "weight", x, "x", weight.sizes());
}

void hidden_major_product(const Product& p, const at::Tensor& weight, bool all_rows) {
  streamed_product(sparse_linear_kernel(), p, weight, {}, {}, p.N * weight.element_size(), all_rows,
                   dots_bf16(p.dtype));
}

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

at::Tensor sparse_linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& residual) {
  check_weight(x, weight);
  const int64_t x_rows = x.dim() >= 1 && x.size(-1) > 0 ? x.numel() / x.size(-1) : 0;
  if (sparse_path(x_rows, weight.t().is_contiguous()) == SparsePath::dense) {
    return linear(x, weight, bias, residual, false);
  }
  const Product p = make_product(x, weight.size(0), weight.size(1), bias, residual, false);
  if (p.y.numel() != 0) hidden_major_product(p, weight, /*all_rows=*/false);
  return p.y;
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("linear", linear);
  m.impl("sparse_linear", sparse_linear);
}

}  // namespace
}  // namespace persimmon::cpu
