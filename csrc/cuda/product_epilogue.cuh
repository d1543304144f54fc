// The end of every product of few rows.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

// Element (m, n) of y [M, N] from its sum: act(sum * column_scale[n] + bias[n]) + residual[m, n], rounded once. act is
// max(., 0)^2 or nothing; what is null counts for nothing. Params has bias, residual and relu2.
//
// Written as multiply-adds, so that the bits do not depend on which of them a compiler makes out of what is around it.
template <class T, class Params>
SIMT_DEVICE T finished(const Params& params, const float* column_scale, float value, int64_t m, int64_t n, int64_t N) {
  constexpr float kNothing = -0.0f;  // added to a zero of either sign, it leaves the sign
  const auto element = [](const void* data, int64_t i) {
    return data == nullptr ? kNothing : simt::to_float(static_cast<const T*>(data)[i]);
  };
  value = fmaf(value, column_scale == nullptr ? 1.0f : column_scale[n], element(params.bias, n));
  if (params.relu2 && value < 0.0f) value = 0.0f;
  value = fmaf(value, params.relu2 ? value : 1.0f, element(params.residual, m * N + n));
  return simt::from_float<T>(value);
}

}  // namespace persimmon::cuda
