// Layer normalisation over the last dimension:
//
//   out[n, c] = (x[n, c] - mean_n) / sqrt(var_n + eps) * weight[c] + bias[c]
//
// x, out [N, C] contiguous, weight and bias [C], all of one element type. mean and var (divided by C) are over row n,
// in float32; the variance is the mean of squared deviations, computed in a second pass. One rounding, at the store:
// the order of torch.nn.functional.layer_norm.
//
// With a residual, x + residual is rounded to the element type first; that sum is written out and is what is
// normalised.
//
// Bytes moved: 2 N C elements (4 N C with a residual), plus weight and bias once (later rows find them in the cache).
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

struct LayerNormParams {
  const void* x;         // [N, C]
  const void* residual;  // [N, C], or null
  const void* weight;    // [C]
  const void* bias;      // [C]
  void* sum;             // [N, C], written where there is a residual; null otherwise
  void* out;             // [N, C]; outputs may not overlap the inputs
  int64_t rows;          // N
  int64_t columns;       // C
  float eps;
};

// How a launch divides the work. A row belongs to `threads_per_row` consecutive threads, a multiple of 32.
struct LayerNormPlan {
  bool vectorised;  // 16-byte accesses with the row in registers; otherwise element by element, reading the row three
                    // times
  int threads_per_row;
  int rows_per_block;
  int64_t blocks;
};
LayerNormPlan plan_layer_norm(const LayerNormParams& params, int element_bytes);

// Starts the kernel on `stream`; returns an error for negative sizes or when the launch fails. Nothing to do:
// cudaSuccess.
cudaError_t launch_layer_norm(const LayerNormParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
