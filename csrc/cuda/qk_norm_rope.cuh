// LayerNorm and rotary embedding of the queries and keys of a fused projection, and the split of that projection:
//
//   qkv [B, T, H, 3, D]  ->  q [B, H, T, D], and k and v, rows (b, h, t) or rows of a cache
//
// y = (x - mean) / sqrt(var + eps) * weight + bias over D = 64 elements, then the pairs (i, i + 16) of the first 32 are
// rotated. float32 inside, one rounding at the store. A slot for each token says which row of the cache it goes to; the
// slots are read on the device, and one outside the cache (-1, by convention) is not written.
//
// Bytes moved: 6 B T H D elements. Every address is a multiple of 16, strides are multiples of 16 bytes.
#pragma once
#include "qkv_inputs.cuh"

namespace persimmon::cuda {

struct QkNormRopeParams {
  QkvInputs in;
  const int64_t* slots;  // [B, T], row of k and v that a token goes to; null: row t
  void* q;               // [B, H, T, D]
  HeadRowsOut k, v;      // rows (b, h, s)
  int64_t cache_rows;    // S: slots from 0 to S - 1 are written
};

// Starts the kernel on `stream`; returns an error for sizes out of range, an address that is not a multiple of 16, or
// when the launch fails. Nothing to do: cudaSuccess.
cudaError_t launch_qk_norm_rope(const QkNormRopeParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
