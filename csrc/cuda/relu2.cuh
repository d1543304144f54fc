// Squared ReLU with an optional bias, and its gradient:
//
//   out[n, f] = max(u, 0)^2        or, with grad,        out[n, f] = grad[n, f] * 2 max(u, 0),        u = x[n, f] +
//   bias[f]
//
// float32 inside, one rounding; a NaN stays one. Bytes moved: 2 N F elements forward, 3 N F backward, and the bias once
// (later rows find it in the cache).
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

struct Relu2Params {
  const void* grad;  // [N, F], or null: forward
  const void* x;     // [N, F]
  const void* bias;  // [F], or null
  void* out;         // [N, F]; may be x or grad
  int64_t rows;      // N; without a bias, one long row is the same
  int64_t columns;   // F
};

// Starts the kernel on `stream`; returns an error for negative sizes or when the launch fails. Nothing to do:
// cudaSuccess.
cudaError_t launch_relu2(const Relu2Params& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
