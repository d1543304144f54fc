#include "../linear.cuh"

#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../../quantized_weight.h"
#include "product.h"

namespace persimmon::cuda {
namespace {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, bool relu2) {
  check_weight(x, weight);
  const c10::cuda::CUDAGuard guard(x.device());
  const Product p = make_product(x, weight.size(0), weight.size(1), bias, residual, relu2);
  const bool hidden_major = !weight.is_contiguous() && weight.t().is_contiguous();
  if (p.has_few_rows() && hidden_major && p.N % 8 == 0) {
    streamed_product(launch_sparse_linear, p, weight.t(), {}, 16, /*all_rows=*/true, "linear");
  } else if (p.has_few_rows() && !hidden_major && p.K % 8 == 0) {
    few_rows_product(launch_linear, p, weight, {}, "linear");
  } else {
    dense_product(p, weight);
  }
  return p.y;
}

at::Tensor linear_int8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale_,
                       const OptionalTensor& bias, const OptionalTensor& residual, bool relu2) {
  check_codes(x, weight, at::kChar, scale_);
  check_shape(scale_, "scale", {weight.size(0)});
  const c10::cuda::CUDAGuard guard(x.device());
  const Product p = make_product(x, weight.size(0), weight.size(1), bias, residual, relu2);
  const at::Tensor scale = scale_.contiguous();
  if (p.has_few_rows() && p.K % 16 == 0) {
    few_rows_product(launch_linear_int8, p, weight, scale, "linear_int8");
  } else {
    tiled_product(p, [&](int64_t n, int64_t rows) {
      return weight.narrow(0, n, rows).to(at::kFloat).mul_(scale.narrow(0, n, rows).unsqueeze(-1)).to(x.scalar_type());
    });
  }
  return p.y;
}

at::Tensor linear_int4(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale_,
                       const OptionalTensor& bias, const OptionalTensor& residual, bool relu2) {
  check_codes(x, weight, at::kByte, scale_);
  const int64_t K = check_packed(weight, scale_);
  const c10::cuda::CUDAGuard guard(x.device());
  const Product p = make_product(x, weight.size(0), K, bias, residual, relu2);
  const at::Tensor scale = scale_.contiguous();
  if (p.has_few_rows()) {
    few_rows_product(launch_linear_int4, p, weight, scale, "linear_int4");
  } else {
    tiled_product(p, [&](int64_t n, int64_t rows) {
      return dequantize_int4(weight.narrow(0, n, rows), scale.narrow(0, n, rows)).to(x.scalar_type());
    });
  }
  return p.y;
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("linear", TORCH_FN(persimmon::cuda::linear));
  m.impl("linear_int8", TORCH_FN(persimmon::cuda::linear_int8));
  m.impl("linear_int4", TORCH_FN(persimmon::cuda::linear_int4));
}
