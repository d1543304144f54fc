// Which keys a query of an attention kernel sees, and what launchers check.
#pragma once
#include "attention.cuh"
#include "attention_tiles.cuh"
#include "plan.cuh"

namespace persimmon::cuda {

// Query t of a sequence sees the keys [start, end_of(t)).
struct VisibleKeys {
  int start, end;  // of any query; 0 <= start, end <= S
  int offset;      // of the last key that query 0 sees by causality; -T - 1 <= offset <= S

  SIMT_DEVICE int causal_end(int query) const { return offset + query + 1; }
  SIMT_DEVICE int end_of(int query) const { return min(end, causal_end(query)); }
};

SIMT_DEVICE int clamp_to_int(int64_t value, int low, int high) {
  return value < low ? low : value > high ? high : static_cast<int>(value);
}

SIMT_DEVICE VisibleKeys visible_keys(const AttentionRange& range, int batch, int queries, int keys) {
  return {
      range.start == nullptr ? 0 : clamp_to_int(range.start[batch], 0, keys),
      range.length == nullptr ? keys : clamp_to_int(range.length[batch], 0, keys),
      range.offset == nullptr ? keys - queries : clamp_to_int(range.offset[batch], -queries - 1, keys),
  };
}

template <class T>
SIMT_DEVICE HeadRows<T> head_rows(const AttentionTensor& tensor, int batch, int head) {
  return {static_cast<const T*>(tensor.data) + batch * tensor.batch_stride + head * tensor.head_stride,
          tensor.row_stride};
}

// The online softmax takes the maximum of unscaled scores, so the scale must be positive: a negative one is turned
// round by negating the queries, and zero is replaced by what makes all products vanish but -inf.
SIMT_DEVICE float softmax_scale(float scale) { return fmaxf(fabsf(scale), 1e-30f); }

// Changes the signs of kRows rows of a tile that only the calling warp uses.
template <int kRows>
SIMT_DEVICE void negate_rows(simt::Shared<uint32_t> tile) {
  for (int word = threadIdx.x % simt::kWarpSize; word < kRows * kHeadDim / 2; word += simt::kWarpSize) {
    tile[word] = tile[word] ^ 0x80008000u;  // two 16-bit signs
  }
  __syncwarp();
}

inline bool is_aligned(const AttentionTensor& tensor) {
  const uint64_t strides = static_cast<uint64_t>(tensor.batch_stride) | static_cast<uint64_t>(tensor.head_stride) |
                           static_cast<uint64_t>(tensor.row_stride);
  return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && strides % kChunkElements == 0;
}

// Sizes for which the grid is legal and keys and queries can be counted in 32 bits.
inline bool is_valid_shape(int batch, int heads, int queries, int keys) {
  constexpr int kMaxRows = 1 << 29;
  return batch >= 0 && batch <= kMaxGridYZ && heads >= 0 && heads <= kMaxGridYZ && queries >= 0 &&
         queries <= kMaxRows && keys >= 0 && keys <= kMaxRows;
}

}  // namespace persimmon::cuda
