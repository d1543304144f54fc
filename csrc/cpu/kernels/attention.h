// Causal softmax attention with per-sequence key ranges. Key s is visible to query t of row b iff
//   start[b] <= s < length[b]  and  s <= offset[b] + t.
// out = softmax(scale * q k^T) v, lse = log-sum-exp of the visible scores; no visible key: out 0, lse -inf.
//
// Work is split into (b, h, block of queries, split of the keys). A unit walks its visible keys in blocks with an fp32
// online softmax; blocks that no query of it sees are not read. With several splits a unit writes fp32 partials, which
// attention_combine merges in order. Reads k and v once per block of queries; they may be int8 codes with a scale for
// each row. Probabilities are rounded to bf16 where products of bf16 pairs exist, and never elsewhere; maxima, sums and
// outputs are fp32.
#pragma once

#include "kernel.h"

namespace persimmon::cpu {

inline constexpr int64_t kQueryBlock = 96;  // a multiple of the register tiles' rows
inline constexpr int64_t kKeyBlock = 64;    // K^T, V and the scores of a block stay in a core's cache
inline constexpr int64_t kAlign = 16;       // rows of fp32 scratch are padded to the widest vector

// The functions below are static: a shared inline function could be kept as the copy of one instruction set's file.

static constexpr int64_t padded(int64_t D) { return (D + kAlign - 1) / kAlign * kAlign; }

// Rows (b, h, t) of a tensor, strides in elements; the D elements of a row are contiguous.
struct Rows {
  const void* data;
  int64_t batch_stride, head_stride, row_stride;
};

struct AttentionShape {
  const int64_t *start, *length, *offset;  // [B] or null: 0, S, S - T
  int64_t B, T, S, H, D;
  float scale;
  DType dtype;
};

struct AttentionParams {
  AttentionShape shape;
  Rows q;           // [B, H, T, D]
  Rows k, v;        // [B, H, S, D]
  Rows k_scale;     // fp32 [B, H, S, 1] where k and v are int8 codes; else null
  Rows v_scale;     // as k_scale
  void* out;        // [B, T, H, D]
  float* lse;       // [B, H, T]
  float* partials;  // [splits, B * H * T, 1 + D] fp32: log-sum-exp and output of a split; null with one split
  float* scratch;   // attention_scratch(D) floats of the calling thread
  int64_t splits;   // of the visible keys; more than one only with one block of queries
};

static constexpr int64_t query_blocks(int64_t T) { return (T + kQueryBlock - 1) / kQueryBlock; }

inline constexpr int64_t kMaxTileRows = 8;  // queries whose scores are computed at once

// Floats of scratch: queries and output, a block of K^T and of V, scores and probabilities of a tile, and for a query
// its maximum and a vector of sums.
static constexpr int64_t attention_scratch(int64_t D) {
  return 2 * (kQueryBlock + kKeyBlock) * padded(D) + 2 * kMaxTileRows * kKeyBlock + kQueryBlock * (1 + kAlign);
}

struct AttentionBackwardParams {
  AttentionShape shape;
  Rows q;            // [B, H, T, D]
  Rows k, v;         // [B, H, S, D]
  Rows dout, out;    // [B, T, H, D]
  const float* lse;  // [B, H, T]
  float* dq;         // [B, H, T, padded(D)] fp32, zero on entry
  void *dk, *dv;     // [B, H, S, D]
  float* scratch;    // attention_backward_scratch(T, D) floats of the calling thread
};

// Floats of scratch: queries and output gradients of a block, K, K^T, V^T, dK and dV of a block, probabilities and
// score gradients, these rounded, and the row sums of dout * out.
static constexpr int64_t attention_backward_scratch(int64_t T, int64_t D) {
  return 7 * kKeyBlock * padded(D) + 3 * kKeyBlock * kKeyBlock + padded(T);
}

PERSIMMON_DECLARE_KERNEL(attention, AttentionParams)                   // over B * H * query_blocks(T) * splits
PERSIMMON_DECLARE_KERNEL(attention_combine, AttentionParams)           // over B * H * T
PERSIMMON_DECLARE_KERNEL(attention_backward, AttentionBackwardParams)  // over B * H

}  // namespace persimmon::cpu
