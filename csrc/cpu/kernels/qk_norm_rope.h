// LayerNorm over D and rotary embedding of the queries and keys of a fused projection, and the split of that
// projection:
//   qkv [B, T, H, 3, D]  ->  q, k, v, each with rows (b, h, t) of D elements
//   y = (x - mean) / sqrt(var + eps) * weight + bias;  pairs (i, i + R/2) of the first R elements are rotated.
// fp32 inside, one rounding at the store. Reads qkv once, writes q, k and v once; k and v may be rows of a cache.
#pragma once

#include "kernel.h"

namespace persimmon::cpu {

// Rows (b, h, t) in caller-owned storage, strides in elements; the D elements of a row are contiguous.
struct RowsOut {
  void* data;
  int64_t batch_stride, head_stride, row_stride;
};

struct QkNormRopeParams {
  const void* qkv;                                    // [B, T, H, 3, D]
  const void *q_weight, *q_bias, *k_weight, *k_bias;  // [D]
  const float *cos, *sin;                             // [B or 1, T, R/2]
  const int64_t* slots;  // [B, T]: row of k and v that token t goes to, -1 for none; null: t
  void* q;               // [B, H, T, D]
  RowsOut k, v;
  int64_t angle_batch_stride;  // 0 where the batch shares cos and sin
  int64_t T, H, D, R;
  float eps;
  DType dtype;
};

struct QkNormRopeBackwardParams {
  const void *dq, *dk, *dv;         // [B, H, T, D]
  const void* qkv;                  // [B, T, H, 3, D]
  const void *q_weight, *k_weight;  // [D]
  const float *cos, *sin;           // [B or 1, T, R/2]
  void* dqkv;                       // [B, T, H, 3, D]
  float* partials;  // [chunks, 5, D] fp32: dq_weight, dq_bias, dk_weight, dk_bias summed over a chunk of
                    // rows, and a row of scratch
  int64_t angle_batch_stride;
  int64_t T, H, D, R;
  int64_t rows;  // B * T * H
  int64_t rows_per_chunk;
  float eps;
  DType dtype;
};

PERSIMMON_DECLARE_KERNEL(qk_norm_rope, QkNormRopeParams)                   // over rows (b, h, t)
PERSIMMON_DECLARE_KERNEL(qk_norm_rope_backward, QkNormRopeBackwardParams)  // over chunks of rows (b, t, h)

}  // namespace persimmon::cpu
