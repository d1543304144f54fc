#include <ATen/ops/cat.h>
#include <torch/library.h>

#include "binding.h"
#include "linear.h"
#include "product_type.h"
#include "sparse_rule.h"

namespace persimmon::cpu {
namespace {

void check_codes(const at::Tensor& x, const at::Tensor& weight, at::ScalarType dtype, const at::Tensor& scale) {
  dtype_of(x, "x");
  check_dim(weight, "weight", 2);
  check_same_device(weight, "weight", x, "x");
  check_dtype(weight, "weight", dtype);
  check_same_device(scale, "scale", x, "x");
  check_dtype(scale, "scale", at::kFloat);
}

// Checks what an int4 weight needs beyond that, and returns how many weights its rows hold.
int64_t check_packed(const at::Tensor& weight, const at::Tensor& scale) {
  const int64_t values = weight.size(1) * 2;
  TORCH_CHECK_VALUE(values % kInt4Group == 0, "weight must hold whole groups of ", kInt4Group / 2,
                    " bytes in a row, got shape ", weight.sizes(), ".");
  check_shape(scale, "scale", {weight.size(0), values / kInt4Group});
  return values;
}

at::Tensor dequantize_int4(const at::Tensor& packed, const at::Tensor& scale) {  // [A, B/2], [A, B/64] -> fp32 [A, B]
  const at::Tensor bytes = packed.reshape({packed.size(0), scale.size(1), kInt4Group / 2});
  const at::Tensor codes = at::cat({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, -1).to(at::kFloat);
  return codes.sub_(8).mul_(scale.unsqueeze(-1)).view({packed.size(0), scale.size(1) * kInt4Group});
}

at::Tensor linear_int8(const at::Tensor& x, const at::Tensor& weight_, const at::Tensor& scale_,
                       const OptionalTensor& bias, const OptionalTensor& residual, bool relu2) {
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

at::Tensor sparse_linear_int8(const at::Tensor& x, const at::Tensor& weight_, const at::Tensor& scale_,
                              const OptionalTensor& bias, const OptionalTensor& residual) {
  check_codes(x, weight_, at::kChar, scale_);
  const int64_t F = weight_.size(0), C = weight_.size(1);
  check_shape(scale_, "scale", {C});
  const Product p = make_product(x, C, F, bias, residual, false);
  if (p.y.numel() == 0) return p.y;
  const at::Tensor weight = weight_.contiguous(), scale = scale_.contiguous();
  if (sparse_path(p.M, /*hidden_major=*/true) == SparsePath::nonzero_rows) {
    streamed_product(sparse_linear_int8_kernel(), p, weight, {}, scale, C, /*all_rows=*/false, /*h_bf16=*/false);
  } else {
    const at::ScalarType type = product_type(x.scalar_type());
    tiled_product(p, [&](int64_t n, int64_t columns) {
      return weight.narrow(1, n, columns).to(at::kFloat).mul_(scale.narrow(0, n, columns)).to(type).t();
    });
  }
  return p.y;
}

at::Tensor sparse_linear_int4(const at::Tensor& x, const at::Tensor& weight_, const at::Tensor& scale_,
                              const OptionalTensor& bias, const OptionalTensor& residual) {
  check_codes(x, weight_, at::kByte, scale_);
  const int64_t F = weight_.size(0), C = check_packed(weight_, scale_);
  const Product p = make_product(x, C, F, bias, residual, false);
  if (p.y.numel() == 0) return p.y;
  const at::Tensor weight = weight_.contiguous(), scale = scale_.contiguous();
  if (sparse_path(p.M, /*hidden_major=*/true) == SparsePath::nonzero_rows) {
    streamed_product(sparse_linear_int4_kernel(), p, weight, scale, {}, C / 2, /*all_rows=*/false, /*h_bf16=*/false);
  } else {
    const at::ScalarType type = product_type(x.scalar_type());
    tiled_product(p, [&](int64_t n, int64_t columns) {  // tiles begin and end between groups
      return dequantize_int4(weight.narrow(1, n / 2, columns / 2),
                             scale.narrow(1, n / kInt4Group, columns / kInt4Group))
          .to(type)
          .t();
    });
  }
  return p.y;
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("linear_int8", linear_int8);
  m.impl("linear_int4", linear_int4);
  m.impl("sparse_linear_int8", sparse_linear_int8);
  m.impl("sparse_linear_int4", sparse_linear_int4);
}

}  // namespace
}  // namespace persimmon::cpu
