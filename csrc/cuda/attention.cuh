// Causal softmax attention. Key s of sequence b is visible to its query t where
//
//   start[b] <= s < length[b]  and  s <= offset[b] + t
//
//   out[b, t, h] = sum over visible s of p[s] v[b, h, s],   p = softmax(scale q[b, h, t] . k[b, h, s])
//   lse[b, h, t] = log of the sum over visible s of exp(scale q . k)
//
// A query that sees no key gives 0 and -inf. What no query of a sequence sees is not read, so it may hold anything.
// Elements are bf16 or fp16, D = 64. Scores, softmax state and sums are fp32; p is rounded to 16 bits for the product
// with v, after the sum of the softmax was taken.
//
// Online softmax (Milakov and Gimelshein 2018) over tiles of keys, as in FlashAttention-2 (Dao 2023). Multiplications:
// 4 D a visible pair; bytes: q, out and lse once, k and v once for every 128 queries, mostly from L2.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

// A tensor [B, H, rows, D] whose rows are contiguous. Strides in elements; they and the address are multiples of 16
// bytes.
struct AttentionTensor {
  const void* data;
  int64_t batch_stride, head_stride, row_stride;
};

// Which keys are visible: [B] in device memory each, or null for 0, S and S - T.
struct AttentionRange {
  const int64_t *start, *length, *offset;
};

struct AttentionParams {
  AttentionTensor q;     // [B, H, T, D]
  AttentionTensor k, v;  // [B, H, S, D]
  void* out;             // [B, T, H, D] contiguous
  float* lse;            // [B, H, T] contiguous
  AttentionRange range;
  int batch, heads, queries, keys;  // B, H, T, S
  float scale;
};

// Starts the kernel on `stream`. cudaErrorInvalidValue for fp32, negative sizes, more than 65535 heads or sequences,
// and strides or addresses that are not multiples of 16 bytes.
cudaError_t launch_attention(const AttentionParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
