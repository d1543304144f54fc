#include "../../normed_products.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../../quantized_weight.h"
#include "product.h"

namespace persimmon::cuda {
namespace {

// A checked weight, as the kernels for few rows read it.
struct Operand {
  at::Tensor data;   // [N, K], or hidden-major [K, N]
  at::Tensor scale;  // undefined for elements
  int64_t N, K;
  int bits;
  bool fits;  // the kernels take its layout, and rows of this length

  LinearLauncher dense() const {
    return bits == 16 ? launch_linear : bits == 8 ? launch_linear_int8 : launch_linear_int4;
  }
  SparseLauncher sparse() const {
    return bits == 16 ? launch_sparse_linear : bits == 8 ? launch_sparse_linear_int8 : launch_sparse_linear_int4;
  }
};

Operand operand(const at::Tensor& x, const Weights& w, bool hidden_major) {
  const at::ScalarType dtype = w.weight.scalar_type();
  if (w.are_codes()) {
    check_codes(x, w.weight, dtype, *w.scale);
  } else {
    check_weight(x, w.weight);
  }
  const at::Tensor data = !w.are_codes() && hidden_major ? w.weight.t() : w.weight;
  const int bits = dtype == at::kChar ? 8 : dtype == at::kByte ? 4 : 16;
  const int64_t rows = data.size(0), columns = bits == 4 ? check_packed(data, *w.scale) : data.size(1);
  if (bits == 8) check_shape(*w.scale, "scale", {hidden_major ? columns : rows});
  return {
      .data = data,
      .scale = w.scale ? w.scale->contiguous() : at::Tensor(),
      .N = hidden_major ? columns : rows,
      .K = hidden_major ? rows : columns,
      .bits = bits,
      .fits = data.is_contiguous() && columns % (bits == 16  ? 8
                                                 : bits == 8 ? 16
                                                             : 64) ==
                                          0,
  };
}

// Whether the kernels take a product with w of as many rows as x has.
bool takes(const at::Tensor& x, const Operand& w) {
  return w.fits && are_few_rows(row_count(x), w.N, w.K, dtype_of(x, "x"));
}

// The parameters of launch_linear and its quantised forms, with a norm in front. What it makes for them stays alive as
// long as it does.
struct NormedProduct {
  NormedProduct(const Product& p, const Norm& norm, const Operand& w)
      : norm_weight(aligned_contiguous(norm.weight)),
        norm_bias(aligned_contiguous(norm.bias)),
        weight(aligned_contiguous(w.data)),
        params(linear_params(p, weight, w.scale)) {
    params.norm_weight = norm_weight.const_data_ptr();
    params.norm_bias = norm_bias.const_data_ptr();
    params.eps = static_cast<float>(norm.eps);
  }

  const at::Tensor norm_weight, norm_bias, weight;
  LinearParams params;
};

at::Tensor linear_behind_norm(const at::Tensor& x, const Norm& norm, const Weights& weights) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Operand w = operand(x, weights, /*hidden_major=*/false);
  if (!takes(x, w)) return composed_norm_linear(x, norm, weights);
  const Product p = make_product(x, w.N, w.K, weights.bias, {}, /*relu2=*/false);
  const NormedProduct product(p, norm, w);
  check_launch(w.dense()(product.params, p.dtype, current_stream()), "norm_linear", x, "x");
  return p.y;
}

// Two kernels: the first leaves the hidden units, the list of those that are not zero, and the second one's arrivals at
// zero.
at::Tensor mlp_behind_norm(const at::Tensor& x, const Norm& norm, const Weights& up_weights,
                           const Weights& down_weights) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Operand up_operand = operand(x, up_weights, /*hidden_major=*/false);
  const Operand down_operand = operand(x, down_weights, /*hidden_major=*/true);
  if (!takes(x, up_operand) || !takes(x, down_operand) || down_operand.K == 0) {
    return composed_norm_mlp(x, norm, up_weights, down_weights);
  }
  const Product up = make_product(x, up_operand.N, up_operand.K, up_weights.bias, {}, /*relu2=*/true);
  const Product down = make_product(up.y, down_operand.N, down_operand.K, down_weights.bias, x, /*relu2=*/false);

  const auto scratch = [&](int64_t count, at::ScalarType dtype) {
    return at::empty({count}, x.options().dtype(dtype));
  };
  const int64_t arrival_count = sparse_linear_arrivals(down.M, down.N, down_operand.bits);
  const at::Tensor words = scratch(nonzero_words(down.K), at::kShort), arrivals = scratch(arrival_count, at::kInt);
  const NonzeroList nonzeros{static_cast<uint16_t*>(words.mutable_data_ptr()),
                             static_cast<uint32_t*>(arrivals.mutable_data_ptr()), arrival_count};
  NormedProduct first(up, norm, up_operand);
  first.params.nonzeros = nonzeros;
  const at::Tensor weight = aligned_contiguous(down_operand.data), sums = split_sums(down, down_operand.bits);
  const SparseLinearParams second = sparse_params(down, weight, down_operand.scale, sums, nonzeros);
  check_launch(up_operand.dense()(first.params, up.dtype, current_stream()), "norm_mlp", x, "x");
  check_launch(down_operand.sparse()(second, down.dtype, current_stream()), "norm_mlp", x, "x");
  return down.y;
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("norm_linear", persimmon::norm_linear<persimmon::cuda::linear_behind_norm>);
  m.impl("norm_mlp", persimmon::norm_mlp<persimmon::cuda::mlp_behind_norm>);
}
