// Gradients of the norm, rotation and split of a fused projection (see qk_norm_rope.cuh). The gradient of a query or
// key is rotated back; with g that, z = (x - mean) / sqrt(var + eps) and u = g * weight, means over D = 64:
//
//   dx = (u - mean(u) - z * mean(u * z)) / sqrt(var + eps)
//   dweight[d] = sum over b, t, h of g * z      dbias[d] = sum over b, t, h of g
//
// Sums over rows have two stages in a fixed order, so the same input gives the same bits: groups of lanes add up their
// heads in registers and a block its groups, then a second kernel adds the blocks (column_sum.cuh).
//
// Bytes moved: 9 B T H D elements. Every address is a multiple of 16.
#pragma once
#include "qkv_inputs.cuh"

namespace persimmon::cuda {

struct QkNormRopeBackwardParams {
  QkvInputs in;
  const void* dq;
  const void* dk;
  const void* dv;     // [B, H, T, D] each
  void* dqkv;         // [B, T, H, 3, D]
  float* partials;    // [qk_norm_rope_backward_blocks, 4, D] scratch
  void* dweights[4];  // [D] each: dq_weight, dq_bias, dk_weight, dk_bias
};

// Blocks of the first stage, for B * T * H heads.
int64_t qk_norm_rope_backward_blocks(int64_t heads, simt::Dtype dtype);

// Starts both kernels on `stream`; returns an error for negative sizes, an address that is not a multiple of 16, or
// when a launch fails. Without heads, the four sums are zeros.
cudaError_t launch_qk_norm_rope_backward(const QkNormRopeBackwardParams& params, simt::Dtype dtype,
                                         cudaStream_t stream);

}  // namespace persimmon::cuda
