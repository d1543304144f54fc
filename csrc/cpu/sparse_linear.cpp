#include <torch/library.h>

#include "binding.h"
#include "sparse_rule.h"
#include "streamed_product.h"

namespace persimmon::cpu {
namespace {

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

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) { m.impl("sparse_linear", sparse_linear); }

}  // namespace
}  // namespace persimmon::cpu
