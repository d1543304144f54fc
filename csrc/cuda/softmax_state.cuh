// Online softmax (Milakov and Gimelshein 2018): a weighted sum of rows with the weights exp2(score - top), and what it
// takes to add more rows or to join two such sums. Nothing seen yet: top = -inf, all sums zero.
#pragma once
#include "../simt/simt.h"
#include "infinity.cuh"

namespace persimmon::cuda {

// What sums relative to `top` are multiplied with to be relative to `new_top`, which is not lower; 0 where they are
// empty.
SIMT_DEVICE float softmax_rescale(float top, float new_top) {
  return top == kMinusInfinity ? 0.0f : exp2f(top - new_top);
}

template <int kWidth>
struct SoftmaxState {
  float top, total;    // total: sum of the weights
  float sums[kWidth];  // of the weighted rows

  SIMT_DEVICE void clear() {
    top = kMinusInfinity;
    total = 0.0f;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sums[j] = 0.0f;
  }

  // kRows rows with their scores, in units of log 2; -inf leaves a row out. A row is `rows` times its scale.
  template <int kRows>
  SIMT_DEVICE void add(const float (&scores)[kRows], const float (&rows)[kRows][kWidth], const float (&scales)[kRows]) {
    float new_top = top;
#pragma unroll
    for (int i = 0; i < kRows; ++i) new_top = fmaxf(new_top, scores[i]);
    const float own = softmax_rescale(top, new_top);
    total *= own;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sums[j] *= own;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float weight = softmax_rescale(scores[i], new_top);
      total += weight;
      const float factor = weight * scales[i];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[j] = fmaf(factor, rows[i][j], sums[j]);
    }
    top = new_top;
  }

  // Adds the state of the lane that is `offset` away. All lanes of the warp call it.
  SIMT_DEVICE void add_lane(int offset) {
    const float other_top = __shfl_xor_sync(~0u, top, offset), new_top = fmaxf(top, other_top);
    const float own = softmax_rescale(top, new_top), factor = softmax_rescale(other_top, new_top);
    total = fmaf(factor, __shfl_xor_sync(~0u, total, offset), own * total);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sums[j] = fmaf(factor, __shfl_xor_sync(~0u, sums[j], offset), own * sums[j]);
    top = new_top;
  }
};

}  // namespace persimmon::cuda
