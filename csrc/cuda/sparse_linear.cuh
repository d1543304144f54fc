// y = act(x W^T + bias) + residual for few rows of x and a hidden-major weight: row j of W^T is contiguous, and is read
// only where some row of x has a non-zero (or NaN) in column j.
//
//   sparse_linear       weight [F, C] in the element type, bf16 or fp16
//   sparse_linear_int8  weight int8 [F, C], scale [C]
//   sparse_linear_int4  weight uint8 [F, C/2], scale [F, C/64], packed along C as weight_formats.cuh describes
//
// The hidden units are split over blocks; each block lists its own units with work, in order, and adds their rows in
// that order; the last block of a column tile to arrive adds the splits, in order too. So nothing waits for the host,
// and the same input gives the same bits, whichever block is the last. Where the product in front has written down
// which units are not zero (nonzero_list.cuh), x is read for those alone.
//
// act is max(., 0)^2 or nothing. Bytes moved: the rows with work and their scales once, and from the L2 cache once for
// every 8 (int8: 4, int4: 2) rows of x; x once for each column tile; the splits' sums twice (from the L2 cache). The
// dense product of the same matrix (all_rows) is this kernel with every row in the lists, so there is no share of zeros
// at which it would be faster. On sm_90 and later the kernel starts before the one in front of it has ended.
#pragma once
#include "../simt/simt.h"
#include "nonzero_list.cuh"

namespace persimmon::cuda {

struct SparseLinearParams {
  const void* x;         // [M, F] bf16 or fp16
  const void* weight;    // see above
  const float* scale;    // see above; null for sparse_linear
  const void* bias;      // [C], or null
  const void* residual;  // [M, C], or null
  void* y;               // [M, C]; may be the residual, and may not overlap the other inputs
  float* partials;       // [splits, M, C] scratch
  NonzeroList nonzeros;  // of x: words, or null where they are not known, and the arrivals of sparse_linear_arrivals
  int64_t M, C, F;
  bool relu2;
  bool all_rows;  // read every row of W^T: a dense product
};

// How many parts F hidden units are split into, by the bits of a weight: 16, 8 or 4.
int64_t sparse_linear_splits(int64_t F, int weight_bits);

// How many arrivals the kernel counts for M rows of x; they are zero when it begins.
int64_t sparse_linear_arrivals(int64_t M, int64_t C, int weight_bits);

// Start the kernel on `stream`. C is a multiple of 8 (sparse_linear), 16 (int8) or 64 (int4), the weight starts at a
// multiple of 16 bytes. Return an error for anything else, float32, sizes out of range, and when the launch fails. No
// columns or rows of y: cudaSuccess.
cudaError_t launch_sparse_linear(const SparseLinearParams& params, simt::Dtype dtype, cudaStream_t stream);
cudaError_t launch_sparse_linear_int8(const SparseLinearParams& params, simt::Dtype dtype, cudaStream_t stream);
cudaError_t launch_sparse_linear_int4(const SparseLinearParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
