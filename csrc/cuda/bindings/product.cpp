#include "product.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../relu2.cuh"

namespace persimmon::cuda {
namespace {

const float* floats_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }

// y [M, n] = x W^T + bias [n], rounded once where cuBLAS doesn't split K; any strides of y's rows, W [n, K] of any
// strides.
void multiply(at::Tensor y, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (bias.defined()) {
    at::addmm_out(y, bias, x, weight.t());
  } else {
    at::mm_out(y, x, weight.t());
  }
}

// y = act(y) + residual in place, after a matrix product that has added the bias; each of the two rounds again.
void apply_epilogue(const Product& p) {
  if (p.relu2 && p.y.numel() > 0) {
    void* const y = p.y.mutable_data_ptr();
    const Relu2Params params{.grad = nullptr, .x = y, .bias = nullptr, .out = y, .rows = 1, .columns = p.y.numel()};
    check_launch(launch_relu2(params, p.dtype, current_stream()), "relu2", p.y, "y");
  }
  if (p.residual.defined()) p.y2d().add_(p.residual);
}

}  // namespace

Product make_product(const at::Tensor& x, int64_t N, int64_t K, const OptionalTensor& bias,
                     const OptionalTensor& residual, bool relu2) {
  const simt::Dtype dtype = dtype_of(x, "x");
  const auto [sizes, M] = check_product(x, N, K, bias, residual);
  return {
      .x = aligned_contiguous(x).view({M, K}),
      .bias = bias ? bias->contiguous() : at::Tensor(),
      .residual = residual ? residual->contiguous().view({M, N}) : at::Tensor(),
      .y = at::empty(sizes, x.options()),
      .relu2 = relu2,
      .M = M,
      .N = N,
      .K = K,
      .dtype = dtype,
  };
}

LinearParams linear_params(const Product& p, const at::Tensor& weight, const at::Tensor& scale) {
  return {
      .x = p.x.const_data_ptr(),
      .norm_weight = nullptr,
      .norm_bias = nullptr,
      .weight = weight.const_data_ptr(),
      .scale = floats_or_null(scale),
      .bias = data_or_null(p.bias),
      .residual = data_or_null(p.residual),
      .y = p.y.mutable_data_ptr(),
      .nonzeros = {},
      .M = p.M,
      .N = p.N,
      .K = p.K,
      .eps = 0.0f,
      .relu2 = p.relu2,
  };
}

void few_rows_product(LinearLauncher launch, const Product& p, const at::Tensor& weight_, const at::Tensor& scale,
                      const char* op) {
  const at::Tensor weight = aligned_contiguous(weight_);
  check_launch(launch(linear_params(p, weight, scale), p.dtype, current_stream()), op, p.x, "x");
}

at::Tensor split_sums(const Product& p, int weight_bits) {
  return at::empty({sparse_linear_splits(p.K, weight_bits), p.M, p.N}, p.x.options().dtype(at::kFloat));
}

SparseLinearParams sparse_params(const Product& p, const at::Tensor& weight, const at::Tensor& scale,
                                 const at::Tensor& sums, const NonzeroList& nonzeros) {
  return {
      .x = p.x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .scale = floats_or_null(scale),
      .bias = data_or_null(p.bias),
      .residual = data_or_null(p.residual),
      .y = p.y.mutable_data_ptr(),
      .partials = sums.mutable_data_ptr<float>(),
      .nonzeros = nonzeros,
      .M = p.M,
      .C = p.N,
      .F = p.K,
      .relu2 = p.relu2,
      .all_rows = false,
  };
}

void streamed_product(SparseLauncher launch, const Product& p, const at::Tensor& weight_, const at::Tensor& scale,
                      int weight_bits, bool all_rows, const char* op) {
  const at::Tensor weight = aligned_contiguous(weight_), sums = split_sums(p, weight_bits);
  const int64_t count = sparse_linear_arrivals(p.M, p.N, weight_bits);
  const at::Tensor arrivals = at::zeros({count}, p.x.options().dtype(at::kInt));
  const NonzeroList unknown{nullptr, static_cast<uint32_t*>(arrivals.mutable_data_ptr()), count};
  SparseLinearParams params = sparse_params(p, weight, scale, sums, unknown);
  params.all_rows = all_rows;
  check_launch(launch(params, p.dtype, current_stream()), op, p.x, "x");
}

void dense_product(const Product& p, const at::Tensor& weight) {
  multiply(p.y2d(), p.x, weight, p.bias);
  apply_epilogue(p);
}

void tiled_product(const Product& p, const std::function<at::Tensor(int64_t n, int64_t rows)>& tile) {
  constexpr int64_t kTileElements = 1 << 24;  // of the weight: 64 MiB in float32, and half of it in x's dtype
  const int64_t rows_that_fit = kTileElements / std::max<int64_t>(p.K, 1) / 64 * 64;
  const int64_t tile_rows = std::clamp<int64_t>(rows_that_fit, 64, kTileElements);
  for (int64_t n = 0; n < p.N; n += tile_rows) {
    const int64_t rows = std::min(tile_rows, p.N - n);
    multiply(p.y2d().narrow(1, n, rows), p.x, tile(n, rows), p.bias.defined() ? p.bias.narrow(0, n, rows) : p.bias);
  }
  apply_epilogue(p);
}

}  // namespace persimmon::cuda
