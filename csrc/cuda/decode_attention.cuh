// One decode step's attention for 1 to 8 new tokens of a sequence: norm and rotation of q and k (qk_norm_rope.cuh), k
// and v of the new tokens appended to the cache, attention of the new tokens over it.
//
//   out[b, t, h] = sum over s of softmax(scale q . k[b, h, s]) v[b, h, s],   start[b] <= s <= slots[b, t]
//
// Slots are read on the device; those of a sequence are consecutive. A token whose slot is outside the cache (-1, by
// convention) is not written and not seen; a token that sees nothing gives 0. What is not seen of the cache may hold
// anything.
//
// The keys of a sequence are split over blocks, which read what was in the cache before; the last split also has the
// new tokens, from registers, so no block waits for another. A second kernel combines the splits in order: the same
// input gives the same bits. Elements are bf16 or fp16, D = 64, R = 32; softmax state and sums are float32. Bytes
// moved: k and v of the visible keys once, whatever the number of new tokens; the splits' sums, 264 bytes for each
// token and head, twice.
//
// The cache may hold int8 codes and a float32 scale for each row instead (cache_formats.cuh): 68 bytes a row and not
// 128. New tokens are rounded before anything attends to them, so a text does not depend on how it was cut into calls.
#pragma once
#include "qkv_inputs.cuh"

namespace persimmon::cuda {

constexpr int kMaxDecodeTokens = 8;

struct DecodeAttentionParams {
  QkvInputs in;
  const int64_t* slots;          // [B, T]
  const int64_t* start;          // [B], or null: 0
  HeadRowsOut k, v;              // the caches [B, H, S, D]
  HeadRowsOut k_scale, v_scale;  // float32 [B, H, S, 1]; of int8 caches only
  void* out;                     // [B, T, H, D]
  float* partials;               // [B, H, splits, T, D + 2] scratch; not used with one split
  int64_t S;
  float scale;  // of the scores
};

// How many parts the S rows of a cache are split into: so many that the GPU is full, as long as a part of a full cache
// has enough rows to be worth a block. Depends on shapes only.
int64_t decode_attention_splits(int64_t B, int64_t H, int64_t S);

// Start the kernels on `stream`. Return an error for sizes out of range, float32, an address or cache stride that is
// not a multiple of 16 bytes (of 8 for codes, of 4 for scales), or when a launch fails. Nothing to do: cudaSuccess.
cudaError_t launch_decode_attention(const DecodeAttentionParams& params, simt::Dtype dtype, cudaStream_t stream);
cudaError_t launch_decode_attention_int8(const DecodeAttentionParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
