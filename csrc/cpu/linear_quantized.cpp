#include <torch/library.h>

#include "../quantized_weight.h"
#include "binding.h"
#include "linear.h"
#include "product_type.h"
#include "sparse_rule.h"

namespace persimmon::cpu {
namespace {

at::Tensor linear_int8(const at::Tensor& x, const at::Tensor& weight_, const at::Tensor& scale_,
                       const OptionalTensor& bias, const OptionalTensor& residual, bool relu2) {
  dtype_of(x, "x");
  check_codes(x, weight_, at::kChar, scale_);
  const int64_t N = weight_.size(0), K = weight_.size(1);
  check_shape(scale_, "scale", {N});
  const Product p = make_product(x, N, K, bias, residual, relu2);
  if (p.y.numel() == 0) return p.y;
  const at::Tensor weight = weight_.contiguous(), scale = scale_.contiguous();
  if (p.M <= kFewRows) {
    few_rows_product(linear_int8_kernel(), WeightFormat::int8, p, weight, scale);
  } else {
    const at::ScalarType type = product_type(x.scalar_type());
    tiled_product(p, [&](int64_t n, int64_t rows) {
      return weight.narrow(0, n, rows).to(at::kFloat).mul_(scale.narrow(0, n, rows).unsqueeze(-1)).to(type);
    });
  }
  return p.y;
}

at::Tensor linear_int4(const at::Tensor& x, const at::Tensor& weight_, const at::Tensor& scale_,
                       const OptionalTensor& bias, const OptionalTensor& residual, bool relu2) {
  dtype_of(x, "x");
  check_codes(x, weight_, at::kByte, scale_);
  const int64_t N = weight_.size(0), K = check_packed(weight_, scale_);
  const Product p = make_product(x, N, K, bias, residual, relu2);
  if (p.y.numel() == 0) return p.y;
  const at::Tensor weight = weight_.contiguous(), scale = scale_.contiguous();
  if (p.M <= kFewRows) {
    few_rows_product(linear_int4_kernel(), WeightFormat::int4, p, weight, scale);
  } else {
    const at::ScalarType type = product_type(x.scalar_type());
    tiled_product(p, [&](int64_t n, int64_t rows) {
      return dequantize_int4(weight.narrow(0, n, rows), scale.narrow(0, n, rows)).to(type);
    });
  }
  return p.y;
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("linear_int8", linear_int8);
  m.impl("linear_int4", linear_int4);
}

}  // namespace
}  // namespace persimmon::cpu
