// The MLP's activation and its gradient, elementwise, with an optional bias over the last dimension.
//   u = x + bias;  relu2(u) = max(u, 0)^2;  dx = grad * 2 * max(u, 0)
// fp32 inside, one rounding at the store; a NaN stays a NaN. Reads x (and grad) and writes the result once.
#pragma once

#include "kernel.h"

namespace persimmon::cpu {

inline constexpr int64_t kRelu2Block = 4096;  // columns in a unit of work

struct Relu2Params {
  const void* grad;  // [rows, F], or null in the forward direction
  const void* x;     // [rows, F]
  const void* bias;  // [F] or null
  void* y;           // [rows, F]: the activation, or dx
  int64_t F;
  DType dtype;
};

PERSIMMON_DECLARE_KERNEL(relu2, Relu2Params)  // over blocks of kRelu2Block columns of a row

}  // namespace persimmon::cpu
