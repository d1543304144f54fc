#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include "binding.h"
#include "huge_pages.h"
#include "linear.h"
#include "product_type.h"
#include "sparse_rule.h"

namespace persimmon::cpu {
namespace {

const void* data_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

}  // namespace

at::Tensor Product::y2d() const { return y.view({M, N}); }

Epilogue Product::epilogue() const {
  return {.bias = data_or_null(bias), .residual = data_or_null(residual), .relu2 = relu2};
}

int64_t Product::epilogue_blocks() const { return M * ((N + kEpilogueColumns - 1) / kEpilogueColumns); }

Product make_product(const at::Tensor& x, int64_t N, int64_t K, const OptionalTensor& bias,
                     const OptionalTensor& residual, bool relu2) {
  const DType dtype = dtype_of(x, "x");
  const auto [sizes, M] = check_product(x, N, K, bias, residual);
  return {
      .x = x.contiguous().view({M, K}),
      .bias = bias ? bias->contiguous() : at::Tensor(),
      .residual = residual ? residual->contiguous() : at::Tensor(),
      .y = on_huge_pages(at::empty(sizes, x.options())),
      .relu2 = relu2,
      .M = M,
      .N = N,
      .K = K,
      .dtype = dtype,
  };
}

void few_rows_product(LinearKernel kernel, WeightFormat format, const Product& p, const at::Tensor& weight,
                      const at::Tensor& scale) {
  static_assert(kFewRows <= kMaxMatvecRows);
  const int64_t length = weights_per_line(format, p.dtype), lines = (p.K + length - 1) / length;
  const at::Tensor packed =
      at::empty({lines, p.M, length}, p.x.options().dtype(dots_bf16(p.dtype) ? at::kBFloat16 : at::kFloat));
  const PackRowsParams pack{
      .x = p.x.const_data_ptr(),
      .packed = packed.mutable_data_ptr(),
      .M = p.M,
      .K = p.K,
      .format = format,
      .dtype = p.dtype,
  };
  parallel(pack_rows_kernel(), pack, lines, p.M * length * packed.element_size());
  const LinearParams params{
      .x = packed.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .scale = floats_or_null(scale),
      .epilogue = p.epilogue(),
      .y = p.y.mutable_data_ptr(),
      .M = p.M,
      .N = p.N,
      .K = p.K,
      .dtype = p.dtype,
  };
  parallel(kernel, params, p.N, lines * kLineBytes);
}

void apply_epilogue(const Product& p) {
  if (!p.relu2 && !p.residual.defined()) return;
  const LinearEpilogueParams params{
      .y = p.y.mutable_data_ptr(),
      .residual = data_or_null(p.residual),
      .N = p.N,
      .relu2 = p.relu2,
      .dtype = p.dtype,
  };
  parallel(linear_epilogue_kernel(), params, p.epilogue_blocks(), kEpilogueColumns * p.y.element_size());
}

void tiled_product(const Product& p, const std::function<at::Tensor(int64_t n, int64_t rows)>& tile) {
  constexpr int64_t kTileElements = 1 << 22, kMaxTileRows = 4096;  // of the weight: 16 MiB in fp32
  const int64_t tile_rows = std::clamp<int64_t>(kTileElements / std::max<int64_t>(p.K, 1) / kInt4Group * kInt4Group,
                                                kInt4Group, kMaxTileRows);
  const at::Tensor x = p.x.to(product_type(p.x.scalar_type()));
  for (int64_t n = 0; n < p.N; n += tile_rows) {
    const int64_t rows = std::min(tile_rows, p.N - n);
    at::Tensor y = at::mm(x, tile(n, rows).t());
    if (p.bias.defined()) y.add_(p.bias.narrow(0, n, rows));
    p.y2d().narrow(1, n, rows).copy_(y);
  }
  apply_epilogue(p);
}

void dense_product(const Product& p, const at::Tensor& weight) {
  const at::ScalarType type = product_type(weight.scalar_type());
  if (type != weight.scalar_type()) {
    return tiled_product(p, [&](int64_t n, int64_t rows) { return weight.narrow(0, n, rows).to(type); });
  }
  at::Tensor y = p.y2d();
  if (p.bias.defined()) {
    at::addmm_out(y, p.bias, p.x, weight.t());
  } else {
    at::mm_out(y, p.x, weight.t());
  }
  apply_epilogue(p);
}

}  // namespace persimmon::cpu
