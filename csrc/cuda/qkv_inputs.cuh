// What the norm and rotation of a fused projection read, and the rows of heads that kernels write.
#pragma once
#include "head_dim.cuh"
#include "plan.cuh"

namespace persimmon::cuda {

struct QkvInputs {
  const void* qkv;  // [B, T, H, 3, D]
  const void* q_weight;
  const void* q_bias;
  const void* k_weight;
  const void* k_bias;          // [D] each; the biases may be null where only gradients are computed
  const float* cos;            // [B or 1, T, R / 2]
  const float* sin;            // as cos
  int64_t angle_batch_stride;  // 0 where the batch shares cos and sin
  int64_t B, T, H;
  float eps;
};

// Whether no size is negative and every address is a multiple of 16.
inline bool is_valid(const QkvInputs& in) {
  const void* const addresses[] = {in.qkv, in.q_weight, in.q_bias, in.k_weight, in.k_bias, in.cos, in.sin};
  for (const void* address : addresses) {
    if (!is_aligned(address)) return false;
  }
  return in.B >= 0 && in.T >= 0 && in.H >= 0;
}

// Rows (b, h, s) in caller-owned storage, strides in elements; the elements of a row are contiguous.
struct HeadRowsOut {
  void* data;
  int64_t batch_stride, head_stride, row_stride;
};

// Whether every row starts at a multiple of `bytes`, whose elements have `element_bytes`.
inline bool rows_start_at_multiples_of(int bytes, const HeadRowsOut& rows, int element_bytes) {
  const int64_t width = bytes / element_bytes;
  return reinterpret_cast<uintptr_t>(rows.data) % bytes == 0 && rows.batch_stride % width == 0 &&
         rows.head_stride % width == 0 && rows.row_stride % width == 0;
}

}  // namespace persimmon::cuda
