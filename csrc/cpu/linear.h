// What the products (linear, sparse_linear and their quantised forms) share: checked operands, and the pieces that a
// product is put together from.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "../product_checks.h"
#include "kernels/linear.h"

namespace persimmon::cpu {

// x W^T with x [..., K] and W [N, K]: checked, and flattened to M rows.
struct Product {
  at::Tensor x;         // [M, K] contiguous
  at::Tensor bias;      // [N] contiguous, or undefined
  at::Tensor residual;  // [M, N] contiguous, or undefined
  at::Tensor y;         // [..., N] to be written
  bool relu2;
  int64_t M, N, K;
  DType dtype;

  at::Tensor y2d() const;
  Epilogue epilogue() const;
  int64_t epilogue_blocks() const;  // items of the kernels that walk over y in blocks of kEpilogueColumns
};

Product make_product(const at::Tensor& x, int64_t N, int64_t K, const OptionalTensor& bias,
                     const OptionalTensor& residual, bool relu2);

inline const float* floats_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }

using LinearKernel = void (*)(const LinearParams&, int64_t, int64_t);

// At most kFewRows rows of x, row-major weight, `scale` undefined where there is none.
void few_rows_product(LinearKernel kernel, WeightFormat format, const Product& p, const at::Tensor& weight,
                      const at::Tensor& scale);

// y = act(y) + residual in place, after a matrix product that has added the bias.
void apply_epilogue(const Product& p);

// Any number of rows, for a weight that is only ever converted a bounded tile at a time: tile(n, rows) returns its rows
// [n, n + rows) in product_type of x's dtype; n is a multiple of kInt4Group.
void tiled_product(const Product& p, const std::function<at::Tensor(int64_t n, int64_t rows)>& tile);

// Any number of rows: torch's matrix product, then the epilogue. weight [N, K] of any strides.
void dense_product(const Product& p, const at::Tensor& weight);

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, bool relu2);

}  // namespace persimmon::cpu
