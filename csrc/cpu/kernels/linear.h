// y = act(x W^T + bias) + residual for a few rows of x: bound by reading W, which happens once, in order.
// fp32 accumulation, one rounding. The sum of an output is in the same order whatever the number of rows of x and of
// threads.
//   linear       weight [N, K] in the element type
//   linear_int8  weight int8 [N, K], scale [N]
//   linear_int4  weight uint8 [N, K/2], scale [N, K/64]: byte i of a group of 64 along K holds weights i (low bits) and
//                i + 32 (high bits) as code = value + 8
//
// All of them walk along K in lines: the weights of one row of W in 64 bytes. pack_rows first brings x into the order
// of the lines, [lines, M, weights in a line], zero behind K: the rows of a tile then are neighbours in memory (K apart
// they would share a few sets of the cache), and the kernels need not treat the end of a row of x apart.
#pragma once

#include "linear_epilogue.h"

namespace persimmon::cpu {

inline constexpr int64_t kInt4Group = 64;  // weights that share a scale
inline constexpr int64_t kLineBytes = 64;
inline constexpr int64_t kMaxMatvecRows = 16;  // of x

enum class WeightFormat { elements, int8, int4 };

// Whether kernels that can do so read x as bf16 and use the processor's bf16 dot products; they read fp32 otherwise.
inline bool dots_bf16(DType dtype) { return dtype == DType::bf16 && isa() == Isa::avx512_bf16; }

inline int64_t weights_per_line(WeightFormat format, DType dtype) {
  switch (format) {
    case WeightFormat::int4:
      return kLineBytes * 2;
    case WeightFormat::int8:
      return kLineBytes;
    default:
      return kLineBytes / (dtype == DType::f32 ? 4 : 2);
  }
}

struct PackRowsParams {
  const void* x;  // [M, K] in dtype
  void* packed;   // [lines, M, weights_per_line] out: fp32; bf16 where dots_bf16(dtype)
  int64_t M, K;
  WeightFormat format;
  DType dtype;
};

struct LinearParams {
  const void* x;       // from pack_rows
  const void* weight;  // see above
  const float* scale;  // see above; null for linear
  Epilogue epilogue;
  void* y;          // [M, N]
  int64_t M, N, K;  // M at most kMaxMatvecRows
  DType dtype;      // of x, bias, residual, y and, for linear, of weight
};

PERSIMMON_DECLARE_KERNEL(pack_rows, PackRowsParams)  // over lines
PERSIMMON_DECLARE_KERNEL(linear, LinearParams)       // over rows of W
PERSIMMON_DECLARE_KERNEL(linear_int8, LinearParams)  // the same
PERSIMMON_DECLARE_KERNEL(linear_int4, LinearParams)  // the same

}  // namespace persimmon::cpu
