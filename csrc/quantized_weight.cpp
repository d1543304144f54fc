#include "quantized_weight.h"

#include <ATen/ops/cat.h>

#include "checks.h"

namespace persimmon {
namespace {

constexpr int64_t kInt4Group = 64;  // weights that share a scale

}  // namespace

void check_codes(const at::Tensor& x, const at::Tensor& weight, at::ScalarType dtype, const at::Tensor& scale) {
  check_dim(weight, "weight", 2);
  check_same_device(weight, "weight", x, "x");
  check_dtype(weight, "weight", dtype);
  check_same_device(scale, "scale", x, "x");
  check_dtype(scale, "scale", at::kFloat);
}

int64_t check_packed(const at::Tensor& weight, const at::Tensor& scale) {
  const int64_t values = weight.size(1) * 2;
  TORCH_CHECK_VALUE(values % kInt4Group == 0, "weight must hold whole groups of ", kInt4Group / 2,
                    " bytes in a row, got shape ", weight.sizes(), ".");
  check_shape(scale, "scale", {weight.size(0), values / kInt4Group});
  return values;
}

at::Tensor dequantize_int4(const at::Tensor& packed, const at::Tensor& scale) {
  const at::Tensor bytes = packed.reshape({packed.size(0), scale.size(1), kInt4Group / 2});
  const at::Tensor codes = at::cat({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, -1).to(at::kFloat);
  return codes.sub_(8).mul_(scale.unsqueeze(-1)).view({packed.size(0), scale.size(1) * kInt4Group});
}

}  // namespace persimmon
