// Rows of one attention head: kHeadDim elements that belong to kLanes consecutive lanes of a warp, 16 bytes a lane.
// LayerNorm over a row and the rotary embedding of its first kRotaryDim elements, in pairs (i, i + kRotaryDim / 2).
// Multiply-adds are written out, so that a row gets the same bits in every kernel: in a prompt and in a decode step.
#pragma once
#include "../simt/simt.h"
#include "head_dim.cuh"

namespace persimmon::cuda {

template <class T>
struct HeadRow {
  static constexpr int kWidth = simt::kVectorWidth<T>;  // elements of a lane
  static constexpr int kLanes = kHeadDim / kWidth;
  static constexpr int kRotaryLanes = kRotaryDim / kWidth;
  using Values = float[kWidth];
};

// Sum over the lanes of a row, the same bits in each of them. All lanes of the warp call it.
template <class T>
SIMT_DEVICE float head_sum(float value) {
#pragma unroll
  for (int offset = HeadRow<T>::kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

struct HeadStatistics {
  float mean, scale;  // scale = 1 / sqrt(var + eps)
};
template <class T>
SIMT_DEVICE HeadStatistics head_statistics(const typename HeadRow<T>::Values& x, float eps) {
  float sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int j = 0; j < HeadRow<T>::kWidth; ++j) sum += x[j];
  const float mean = head_sum<T>(sum) / kHeadDim;
#pragma unroll
  for (int j = 0; j < HeadRow<T>::kWidth; ++j) squares = fmaf(x[j] - mean, x[j] - mean, squares);
  return {mean, rsqrtf(fmaf(head_sum<T>(squares), 1.0f / kHeadDim, eps))};
}

// x = LayerNorm(x); weight and bias [kHeadDim]; `lane` is the lane's place in the row.
template <class T>
SIMT_DEVICE void head_norm(typename HeadRow<T>::Values& x, const T* weight, const T* bias, int lane, float eps) {
  const auto [mean, scale] = head_statistics<T>(x, eps);
  typename HeadRow<T>::Values w, b;
  simt::unpack_vector<T>(simt::load16(weight + lane * HeadRow<T>::kWidth), w);
  simt::unpack_vector<T>(simt::load16(bias + lane * HeadRow<T>::kWidth), b);
#pragma unroll
  for (int j = 0; j < HeadRow<T>::kWidth; ++j) x[j] = fmaf((x[j] - mean) * scale, w[j], b[j]);
}

// Rotates a row by the angles whose cosines and sines are given, [kRotaryDim / 2] each; direction -1 rotates back. All
// lanes of the warp call it.
template <class T>
SIMT_DEVICE void head_rotate(typename HeadRow<T>::Values& x, const float* cos, const float* sin, int lane,
                             float direction) {
  using Row = HeadRow<T>;
  const bool first = lane < Row::kRotaryLanes / 2;  // of its pairs, the lane holds the first elements
  const float sign = first ? -direction : direction;
  const int angle = lane % (Row::kRotaryLanes / 2) * Row::kWidth;
#pragma unroll
  for (int j = 0; j < Row::kWidth; j += 4) {
    float c[4], s[4];
    simt::unpack_vector<float>(simt::load16(cos + angle + j), c);
    simt::unpack_vector<float>(simt::load16(sin + angle + j), s);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float other = __shfl_xor_sync(~0u, x[j + i], Row::kRotaryLanes / 2);
      if (lane < Row::kRotaryLanes) x[j + i] = fmaf(x[j + i], c[i], sign * other * s[i]);
    }
  }
}

}  // namespace persimmon::cuda
