// y = act(x W^T + bias) + residual for a few rows of x and a hidden-major weight: row j of W^T is contiguous, and is
// read only where some row of x has a non-zero (or NaN) in column j. Rows are streamed whole, several at a time, into
// sums that stay in the cache: as fast as the dense kernel when nothing is zero.
//   sparse_linear       weight [F, C] in the element type
//   sparse_linear_int8  weight int8 [F, C]; the scale [C] is applied when the partial sums are added
//   sparse_linear_int4  weight uint8 [F, C/2], scale [F, C/64], packed along C as linear.h describes
#pragma once

#include "kernel.h"

namespace persimmon::cpu {

inline constexpr int64_t kStreamedRows = 16;  // the most rows of x
inline constexpr int64_t kSumColumns = 128;   // columns in a block of sums
inline constexpr int64_t kListPadding = 16;   // what find_rows may write behind the last row

struct FindRowsParams {
  const void* x;   // [M, F]
  int32_t* rows;   // [F + kListPadding] out: the rows of W^T to read, ascending
  int64_t* count;  // out: how many rows
  int64_t M, F;
  DType dtype;  // of x
};

struct SparseLinearParams {
  const void* x;        // [M, F]
  const void* weight;   // see above
  const float* scale;   // sparse_linear_int4 only
  const int32_t* rows;  // [count]
  // [chunks, blocks, M, kSumColumns] out: the sums over a chunk of rows. Blocks of columns, so that the sums of all
  // rows of x pass through the cache in one stream. Unit i is block i % blocks of chunk i / blocks.
  float* partials;
  int64_t count, chunks;  // chunk i has the rows from count * i / chunks on
  int64_t M, C, F, blocks;
  DType dtype;  // of x and, for sparse_linear, of weight
};

PERSIMMON_DECLARE_KERNEL(find_rows, FindRowsParams)               // one unit
PERSIMMON_DECLARE_KERNEL(sparse_linear, SparseLinearParams)       // over blocks of chunks
PERSIMMON_DECLARE_KERNEL(sparse_linear_int8, SparseLinearParams)  // the same
PERSIMMON_DECLARE_KERNEL(sparse_linear_int4, SparseLinearParams)  // the same

}  // namespace persimmon::cpu
