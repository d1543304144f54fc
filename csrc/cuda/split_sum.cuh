// The end of a product that was split along its columns: adds the splits in order and finishes the output,
//
//   y[m, n] = act(sum over s of partials[s, m, n] * scale[n] + bias[n]) + residual[m, n],    act: max(., 0)^2 or
//   nothing
//
// Bytes moved: the partial sums once, from the L2 cache that their kernel has left them in.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

struct SplitSumParams {
  const float* partials;  // [splits, M, N]
  const float* scale;     // [N], or null
  const void* bias;       // [N], or null
  const void* residual;   // [M, N], or null
  void* y;                // [M, N]; may be the residual
  int64_t splits, M, N;
  bool relu2;
};

// Starts the kernel on `stream`; dtype is that of bias, residual and y. Returns an error for negative sizes or when the
// launch fails. Nothing to do: cudaSuccess.
cudaError_t launch_split_sum(const SplitSumParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
