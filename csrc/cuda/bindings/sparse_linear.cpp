#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../../quantized_weight.h"
#include "../linear.cuh"
#include "product.h"

namespace persimmon::cuda {
namespace {

// Without a kernel for its sizes, any weight has the dense products; one that is not hidden-major gains nothing here.
at::Tensor sparse_linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& residual) {
  check_weight(x, weight);
  const c10::cuda::CUDAGuard guard(x.device());
  const Product p = make_product(x, weight.size(0), weight.size(1), bias, residual, false);
  if (p.has_few_rows() && weight.t().is_contiguous() && p.N % 8 == 0) {
    streamed_product(launch_sparse_linear, p, weight.t(), {}, 16, /*all_rows=*/false, "sparse_linear");
  } else if (p.has_few_rows() && weight.is_contiguous() && p.K % 8 == 0) {
    few_rows_product(launch_linear, p, weight, {}, "sparse_linear");
  } else {
    dense_product(p, weight);
  }
  return p.y;
}

at::Tensor sparse_linear_int8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale_,
                              const OptionalTensor& bias, const OptionalTensor& residual) {
  check_codes(x, weight, at::kChar, scale_);
  const int64_t F = weight.size(0), C = weight.size(1);
  check_shape(scale_, "scale", {C});
  const c10::cuda::CUDAGuard guard(x.device());
  const Product p = make_product(x, C, F, bias, residual, false);
  const at::Tensor scale = scale_.contiguous();
  if (p.has_few_rows() && C % 16 == 0) {
    streamed_product(launch_sparse_linear_int8, p, weight, scale, 8, /*all_rows=*/false, "sparse_linear_int8");
  } else {
    tiled_product(p, [&](int64_t n, int64_t columns) {
      return weight.narrow(1, n, columns).to(at::kFloat).mul_(scale.narrow(0, n, columns)).to(x.scalar_type()).t();
    });
  }
  return p.y;
}

at::Tensor sparse_linear_int4(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale_,
                              const OptionalTensor& bias, const OptionalTensor& residual) {
  check_codes(x, weight, at::kByte, scale_);
  const int64_t F = weight.size(0), C = check_packed(weight, scale_);
  const c10::cuda::CUDAGuard guard(x.device());
  const Product p = make_product(x, C, F, bias, residual, false);
  const at::Tensor scale = scale_.contiguous();
  if (p.has_few_rows()) {
    streamed_product(launch_sparse_linear_int4, p, weight, scale, 4, /*all_rows=*/false, "sparse_linear_int4");
  } else {
    tiled_product(p, [&](int64_t n, int64_t columns) {  // tiles begin and end between groups
      return dequantize_int4(weight.narrow(1, n / 2, columns / 2), scale.narrow(1, n / 64, columns / 64))
          .to(x.scalar_type())
          .t();
    });
  }
  return p.y;
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("sparse_linear", TORCH_FN(persimmon::cuda::sparse_linear));
  m.impl("sparse_linear_int8", TORCH_FN(persimmon::cuda::sparse_linear_int8));
  m.impl("sparse_linear_int4", TORCH_FN(persimmon::cuda::sparse_linear_int4));
}
