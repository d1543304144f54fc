// y = act(x W^T + bias) + residual for a few rows of x and a hidden-major weight: row j of W^T is contiguous, and is
// read only where some row of x has a non-zero (or NaN) in column j. Rows are streamed whole, eight at a time, into
// accumulators that stay in the cache: as fast as the dense kernel when nothing is zero.
//   sparse_linear       weight [F, C] in the element type
//   sparse_linear_int8  weight int8 [F, C]; the scale [C] is applied when the partial sums are added
//   sparse_linear_int4  weight uint8 [F, C/2], scale [F, C/64], packed along C as linear.h describes
#pragma once

#include "kernel.h"

namespace persimmon::cpu {

inline constexpr int kAxpyRows = 8;         // rows of W^T in a pass over the accumulators
inline constexpr int64_t kSumColumns = 64;  // columns in a block of sums

struct GatherRowsParams {
  const void* x;   // [M, F]
  uint8_t* mask;   // [F] scratch
  int32_t* rows;   // [F] out: the rows of W^T to read, ascending
  void* h;         // [F/8 rounded up, M, 8] out: their activations, fp32 or (h_bf16) bf16, zero behind the last
  int64_t* count;  // out: how many rows
  int64_t M, F;
  bool all;  // take every row
  bool h_bf16;
  DType dtype;  // of x
};

struct SparseLinearParams {
  const void* weight;   // see above
  const float* scale;   // sparse_linear_int4 only
  const int32_t* rows;  // [count]
  const void* h;        // [count/8 rounded up, M, 8] fp32; bf16 for sparse_linear where dots_bf16(dtype)
  // [chunks, blocks, M, kSumColumns] out: the sums over a chunk of rows. Blocks of columns, so that the sums of all
  // rows of x pass through the cache in one stream.
  float* partials;
  int64_t count, M, C, blocks;
  int64_t rows_per_chunk;  // a multiple of kAxpyRows
  DType dtype;             // of weight, for sparse_linear
};

PERSIMMON_DECLARE_KERNEL(gather_rows, GatherRowsParams)           // one unit
PERSIMMON_DECLARE_KERNEL(sparse_linear, SparseLinearParams)       // over chunks of rows
PERSIMMON_DECLARE_KERNEL(sparse_linear_int8, SparseLinearParams)  // the same
PERSIMMON_DECLARE_KERNEL(sparse_linear_int4, SparseLinearParams)  // the same

}  // namespace persimmon::cpu
