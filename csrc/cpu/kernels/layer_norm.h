// LayerNorm over the last dimension, and residual add + LayerNorm in one pass.
//   sum = x + residual (rounded to the element type);  y = (sum - mean) / sqrt(var + eps) * weight + bias
// fp32 statistics in two passes; one rounding at the store. Reads x (and residual), writes y (and sum) once.
#pragma once

#include "kernel.h"

namespace persimmon::cpu {

struct LayerNormParams {
  const void* x;         // [rows, C]
  const void* residual;  // [rows, C] or null
  const void* weight;    // [C]
  const void* bias;      // [C]
  void* sum;             // [rows, C], written where residual is given
  void* y;               // [rows, C]
  int64_t C;
  bool bypass_caches;  // when storing the results, where possible
  float eps;
  DType dtype;
};

struct LayerNormBackwardParams {
  const void* grad;    // [rows, C]
  const void* x;       // [rows, C]
  const void* weight;  // [C]
  void* dx;            // [rows, C]
  float* partials;     // [chunks, 2, C] fp32: dweight and dbias summed over a chunk of rows
  int64_t rows, C;
  int64_t rows_per_chunk;
  bool bypass_caches;  // when storing dx, where possible
  float eps;
  DType dtype;
};

PERSIMMON_DECLARE_KERNEL(layer_norm, LayerNormParams)                   // over rows
PERSIMMON_DECLARE_KERNEL(layer_norm_backward, LayerNormBackwardParams)  // over chunks of rows

}  // namespace persimmon::cpu
