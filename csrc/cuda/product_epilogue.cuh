// The end of every product of few rows.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

// Element (m, n) of y [M, N] from its sum: act(sum * column_scale[n] + bias[n]) + residual[m, n], rounded once. act is
// max(., 0)^2 or nothing; what is null counts for nothing. Params has bias, residual and relu2.
template <class T, class Params>
SIMT_DEVICE T finished(const Params& params, const float* column_scale, float value, int64_t m, int64_t n, int64_t N) {
  if (column_scale != nullptr) value *= column_scale[n];
  if (params.bias != nullptr) value += simt::to_float(static_cast<const T*>(params.bias)[n]);
  if (params.relu2) {
    value = value < 0.0f ? 0.0f : value;
    value *= value;
  }
  if (params.residual != nullptr) value += simt::to_float(static_cast<const T*>(params.residual)[m * N + n]);
  return simt::from_float<T>(value);
}

}  // namespace persimmon::cuda
