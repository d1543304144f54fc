#include <torch/library.h>

#include "../quantized_weight.h"
#include "binding.h"
#include "product_type.h"
#include "sparse_rule.h"
#include "streamed_product.h"

namespace persimmon::cpu {
namespace {

at::Tensor sparse_linear_int8(const at::Tensor& x, const at::Tensor& weight_, const at::Tensor& scale_,
                              const OptionalTensor& bias, const OptionalTensor& residual) {
  dtype_of(x, "x");
  check_codes(x, weight_, at::kChar, scale_);
  const int64_t F = weight_.size(0), C = weight_.size(1);
  check_shape(scale_, "scale", {C});
  const Product p = make_product(x, C, F, bias, residual, false);
  if (p.y.numel() == 0) return p.y;
  const at::Tensor weight = weight_.contiguous(), scale = scale_.contiguous();
  if (sparse_path(p.M, /*hidden_major=*/true) == SparsePath::nonzero_rows) {
    streamed_product(sparse_linear_int8_kernel(), p, weight, {}, scale, /*all_rows=*/false);
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
  dtype_of(x, "x");
  check_codes(x, weight_, at::kByte, scale_);
  const int64_t F = weight_.size(0), C = check_packed(weight_, scale_);
  const Product p = make_product(x, C, F, bias, residual, false);
  if (p.y.numel() == 0) return p.y;
  const at::Tensor weight = weight_.contiguous(), scale = scale_.contiguous();
  if (sparse_path(p.M, /*hidden_major=*/true) == SparsePath::nonzero_rows) {
    streamed_product(sparse_linear_int4_kernel(), p, weight, scale, {}, /*all_rows=*/false);
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
  m.impl("sparse_linear_int8", sparse_linear_int8);
  m.impl("sparse_linear_int4", sparse_linear_int4);
}

}  // namespace
}  // namespace persimmon::cpu
