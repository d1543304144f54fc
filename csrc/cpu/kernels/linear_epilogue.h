// What follows a product, before its one rounding:  y = act(v + bias) + residual,  act(u) = max(u, 0)^2 or u.
#pragma once

#include "kernel.h"

namespace persimmon::cpu {

inline constexpr int64_t kEpilogueColumns = 512;  // columns in a unit of work

struct Epilogue {
  const void* bias;      // [N] or null
  const void* residual;  // [M, N] or null
  bool relu2;
};

struct LinearEpilogueParams {
  void* y;               // [M, N], read and written
  const void* residual;  // [M, N] or null
  int64_t N;
  bool relu2;
  DType dtype;
};

struct SumPartialsParams {
  const float* partials;  // [chunks, blocks, M, block], added in the order of the chunks
  const float* scale;     // [N] or null: multiplies the sum
  Epilogue epilogue;
  void* y;                              // [M, N]
  int64_t chunks, blocks, block, M, N;  // block: columns, a multiple of a vector's lanes
  DType dtype;
};

PERSIMMON_DECLARE_KERNEL(linear_epilogue, LinearEpilogueParams)  // over blocks of kEpilogueColumns columns of a row
PERSIMMON_DECLARE_KERNEL(sum_partials, SumPartialsParams)        // over blocks of kEpilogueColumns columns of a row

}  // namespace persimmon::cpu
