// Second stage of the gradients of weights and biases: out[i][c] = sum over n of partials[n, i, c].
//
// The order of summation depends on the sizes only, so a result has the same bits run after run. Bytes moved: the
// partial sums once.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

constexpr int kMaxColumnSums = 4;

struct ColumnSumParams {
  const float* partials;      // [N, outputs, C]
  void* out[kMaxColumnSums];  // [C] each; those past `outputs` are not used
  int64_t rows;               // N; 0 gives zeros
  int64_t columns;            // C
  int outputs;
};

// Starts the kernel on `stream`; dtype is that of the outputs. Returns an error for sizes out of range or when the
// launch fails. Nothing to do: cudaSuccess.
cudaError_t launch_column_sum(const ColumnSumParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
