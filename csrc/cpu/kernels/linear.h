// y = act(x W^T + bias) + residual for a few rows of x: bound by reading W, which happens once, in order.
// Eight rows of W at a time against one row of x, or four against several; fp32 accumulation, one rounding. The sum of
// an output is in the same order whatever the number of rows of x and of threads.
//   linear       weight [N, K] in the element type
//   linear_int8  weight int8 [N, K], scale [N]
//   linear_int4  weight uint8 [N, K/2], scale [N, K/64]: byte i of a group of 64 along K holds weights i (low bits) and
//                i + 32 (high bits) as code = value + 8
#pragma once

#include "linear_epilogue.h"

namespace persimmon::cpu {

inline constexpr int kMatvecRows = 8;      // rows of W in a unit of work
inline constexpr int64_t kInt4Group = 64;  // weights that share a scale

// Whether kernels that can do so read x as bf16 and use the processor's bf16 dot products; they read fp32 otherwise.
inline bool dots_bf16(DType dtype) { return dtype == DType::bf16 && isa() == Isa::avx512_bf16; }

struct LinearParams {
  const void* x;       // [M, K] fp32; bf16 for linear and linear_int4 where dots_bf16(dtype)
  const void* weight;  // see above
  const float* scale;  // see above; null for linear
  Epilogue epilogue;
  void* y;  // [M, N]
  int64_t M, N, K;
  DType dtype;  // of bias, residual, y and, for linear, of weight
};

PERSIMMON_DECLARE_KERNEL(linear, LinearParams)       // over groups of kMatvecRows rows of W
PERSIMMON_DECLARE_KERNEL(linear_int8, LinearParams)  // the same
PERSIMMON_DECLARE_KERNEL(linear_int4, LinearParams)  // the same

}  // namespace persimmon::cpu
