// What the products (linear, sparse_linear and their quantised forms) share: checked operands, and the ways to a
// result.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "../../product_checks.h"
#include "../linear.cuh"
#include "../sparse_linear.cuh"
#include "binding.h"

namespace persimmon::cuda {

// Whether the kernels for few rows take a product: they are for 16-bit elements, and for sizes that their grids hold.
inline bool are_few_rows(int64_t M, int64_t N, int64_t K, simt::Dtype dtype) {
  constexpr int64_t kMaxOutputs = 1 << 30;
  constexpr int kFewestBits = 4;  // of a weight: they split K into the most parts
  return M <= kFewRows && dtype != simt::Dtype::kFloat32 && sparse_linear_splits(K, kFewestBits) <= kMaxGridYZ &&
         N <= kMaxOutputs;
}

// x W^T with x [..., K] and W [N, K]: checked, and flattened to M rows. Made under the guard of x's device.
struct Product {
  at::Tensor x;         // [M, K] contiguous, at a multiple of 16 bytes
  at::Tensor bias;      // [N] contiguous, or undefined
  at::Tensor residual;  // [M, N] contiguous, or undefined
  at::Tensor y;         // [..., N] to be written
  bool relu2;
  int64_t M, N, K;
  simt::Dtype dtype;

  at::Tensor y2d() const { return y.view({M, N}); }
  bool has_few_rows() const { return are_few_rows(M, N, K, dtype); }
};

Product make_product(const at::Tensor& x, int64_t N, int64_t K, const OptionalTensor& bias,
                     const OptionalTensor& residual, bool relu2);

using LinearLauncher = cudaError_t (*)(const LinearParams&, simt::Dtype, cudaStream_t);
using SparseLauncher = cudaError_t (*)(const SparseLinearParams&, simt::Dtype, cudaStream_t);

// What the kernels get of a product; weight and scale as aligned_contiguous returns them, and to be kept until the
// launch, `scale` undefined where there is none. `sums` is split_sums of the same product.
LinearParams linear_params(const Product& p, const at::Tensor& weight, const at::Tensor& scale);
SparseLinearParams sparse_params(const Product& p, const at::Tensor& weight, const at::Tensor& scale,
                                 const at::Tensor& sums, const NonzeroList& nonzeros);
at::Tensor split_sums(const Product& p, int weight_bits);  // scratch

// Few rows, row-major weight.
void few_rows_product(LinearLauncher launch, const Product& p, const at::Tensor& weight, const at::Tensor& scale,
                      const char* op);

// Few rows, and row j of W^T contiguous in `weight` [K, …]: all rows, or those that x does not multiply by zero.
void streamed_product(SparseLauncher launch, const Product& p, const at::Tensor& weight, const at::Tensor& scale,
                      int weight_bits, bool all_rows, const char* op);

// Any number of rows: torch's matrix product, which adds the bias before it rounds, then squared ReLU and residual,
// each of which rounds again. weight [N, K] of any strides.
void dense_product(const Product& p, const at::Tensor& weight);

// The same for a weight that is only ever converted a bounded tile at a time: tile(n, rows) returns its rows
// [n, n + rows) in x's dtype; n is a multiple of 64.
void tiled_product(const Product& p, const std::function<at::Tensor(int64_t n, int64_t rows)>& tile);

}  // namespace persimmon::cuda
