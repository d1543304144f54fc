// y = act(norm(x) W^T + bias) + residual for 1 to 16 rows of x: bound by reading W, which happens once, in 16-byte
// loads.
//
//   linear       weight [N, K] in the element type, bf16 or fp16
//   linear_int8  weight int8 [N, K], scale [N]
//   linear_int4  weight uint8 [N, K/2], scale [N, K/64], packed along K as weight_formats.cuh describes
//
// act is max(., 0)^2 or nothing, norm a layer norm (layer_norm.cuh), rounded to the element type, or nothing. float32
// accumulation in an order that does not depend on the number of rows of x; one rounding, at the store. Bytes moved:
// the weight and its scales once; x once for every 32 rows of the weight, three times with a norm (from the second time
// on out of the caches).
//
// On sm_90 and later the kernel starts before the one in front of it has ended, and meanwhile fetches the beginning of
// the weight into the L2 cache.
#pragma once
#include "../simt/simt.h"
#include "nonzero_list.cuh"

namespace persimmon::cuda {

constexpr int64_t kFewRows = 16;

struct LinearParams {
  const void* x;            // [M, K] bf16 or fp16
  const void* norm_weight;  // [K], or null: no norm
  const void* norm_bias;    // [K], with norm_weight
  const void* weight;       // see above
  const float* scale;       // see above; null for linear
  const void* bias;         // [N], or null
  const void* residual;     // [M, N], or null
  void* y;                  // [M, N]; may be the residual, and may not overlap the other inputs
  NonzeroList nonzeros;     // of y, to be written for a sparse product behind; null words: none
  int64_t M, N, K;
  float eps;  // of the norm
  bool relu2;
};

// Start the kernel on `stream`. K is a multiple of 8 (linear), 16 (int8) or 64 (int4); x, the weight and those of the
// norm start at multiples of 16 bytes. Return an error for anything else, M above kFewRows, float32, and when the
// launch fails. No columns or rows of y: cudaSuccess, and nothing is written.
cudaError_t launch_linear(const LinearParams& params, simt::Dtype dtype, cudaStream_t stream);
cudaError_t launch_linear_int8(const LinearParams& params, simt::Dtype dtype, cudaStream_t stream);
cudaError_t launch_linear_int4(const LinearParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
