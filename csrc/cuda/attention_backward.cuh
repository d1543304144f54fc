// Gradients of attention (see attention.cuh). With p the probabilities, recomputed from the log-sum-exp:
//
//   delta[t] = dout[t] . out[t]          dscore[t, s] = p[t, s] (dout[t] . v[s] - delta[t])
//   dv[s] = sum over t of p[t, s] dout[t]
//   dk[s] = scale * sum over t of dscore[t, s] q[t]
//   dq[t] = scale * sum over s of dscore[t, s] k[s]
//
// Keys that no query sees, and queries that see no key, get 0. p and dscore are rounded to 16 bits for the products.
//
// Three kernels, in FlashAttention-2's notation (Dao 2023): delta; dk and dv, a block owning keys and walking over the
// queries that see them; dq, a block owning queries. Scores are computed twice (14 D multiplications a visible pair
// instead of 10), so that every sum has one owner: no atomics, the same bits in every run, and no fp32 copy of dq.
#pragma once
#include "attention.cuh"

namespace persimmon::cuda {

struct AttentionBackwardParams {
  AttentionTensor q;          // [B, H, T, D]
  AttentionTensor k, v;       // [B, H, S, D]
  AttentionTensor dout, out;  // [B, H, T, D] views
  const float* lse;           // [B, H, T] contiguous
  float* delta;               // [B, H, T] scratch
  void* dq;                   // [B, H, T, D] contiguous
  void *dk, *dv;              // [B, H, S, D] contiguous
  AttentionRange range;
  int batch, heads, queries, keys;  // B, H, T, S
  float scale;
};

// Starts the kernels on `stream`. Errors as of launch_attention.
cudaError_t launch_attention_backward(const AttentionBackwardParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
