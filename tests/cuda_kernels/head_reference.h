// float64 references of what happens to a row of a head: LayerNorm, rotary embedding, and their gradients.
#pragma once

#include <array>
#include <cmath>

#include "simt/simt.h"

namespace kernel_test {

constexpr int kHeadDim = 64;
constexpr int kHalfRotary = 16;
using HeadRow = std::array<double, kHeadDim>;

template <class T>
HeadRow head_row(const T* data) {
  HeadRow row;
  for (int d = 0; d < kHeadDim; ++d) row[d] = simt::to_float(data[d]);
  return row;
}

// Rotates by the given angles, [kHalfRotary] each; direction -1 rotates back.
inline HeadRow rotated(HeadRow x, const float* cos, const float* sin, double direction = 1.0) {
  for (int i = 0; i < kHalfRotary; ++i) {
    const double a = x[i], b = x[i + kHalfRotary];
    x[i] = a * cos[i] - direction * b * sin[i];
    x[i + kHalfRotary] = b * cos[i] + direction * a * sin[i];
  }
  return x;
}

struct Normalised {
  HeadRow z;
  double scale;
};
inline Normalised normalised(HeadRow x, double eps) {
  double mean = 0.0, variance = 0.0;
  for (const double value : x) mean += value / kHeadDim;
  for (const double value : x) variance += (value - mean) * (value - mean) / kHeadDim;
  const double scale = 1.0 / std::sqrt(variance + eps);
  for (double& value : x) value = (value - mean) * scale;
  return {x, scale};
}

template <class T>
HeadRow normed_and_rotated(const T* x, const T* weight, const T* bias, const float* cos, const float* sin, double eps) {
  HeadRow y = normalised(head_row(x), eps).z;
  for (int d = 0; d < kHeadDim; ++d) y[d] = y[d] * simt::to_float(weight[d]) + simt::to_float(bias[d]);
  return rotated(y, cos, sin);
}

}  // namespace kernel_test
