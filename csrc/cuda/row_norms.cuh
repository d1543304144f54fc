// The layer norm of layer_norm.cuh as the beginning of another kernel, for the few rows that its blocks all read.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

// Mean and reciprocal standard deviation of rows 0 … M - 1 of x [M, K], M at most kM, to statistics[2 m] and
// statistics[2 m + 1]. Every thread of a block of kThreads calls it; a barrier must follow before what it wrote is
// read. `partial` holds kM * kThreads / 32 floats. The variance is the mean of squared deviations, for which x is read
// again (out of the L1 cache). The order of summation does not depend on kM, and where a product is added, the
// multiply-add is written out: no bit of a row depends on how many others there are.
template <class T, int kM, int kThreads>
SIMT_DEVICE void row_statistics(const T* x, int64_t M, int64_t K, float eps, simt::Shared<float> partial,
                                simt::Shared<float> statistics) {
  constexpr int kWarps = kThreads / simt::kWarpSize, kWidth = simt::kVectorWidth<T>;
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  const float inverse_columns = 1.0f / static_cast<float>(K);

  // Sums up every row with sum = add(sum, element, m), and gives row m's to finish(m, sum) in one thread.
  const auto reduce = [&](const auto& add, const auto& finish) {
    float sums[kM] = {};
    for (int64_t column = threadIdx.x * kWidth; column < K; column += kThreads * kWidth) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        if (m >= M) break;
        float values[kWidth];
        simt::unpack_vector<T>(simt::load16(x + m * K + column), values);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[m] = add(sums[m], values[j], m);
      }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const float sum = simt::warp_sum(sums[m]);
      if (lane == 0) partial[m * kWarps + warp] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= kM) return;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += partial[threadIdx.x * kWarps + i];
    finish(static_cast<int>(threadIdx.x), sum);
  };
  reduce([](float sum, float value, int) { return sum + value; },
         [&](int m, float sum) { statistics[2 * m] = sum * inverse_columns; });
  __syncthreads();
  reduce(
      [&](float sum, float value, int m) {
        const float deviation = value - statistics[2 * m];
        return fmaf(deviation, deviation, sum);
      },
      [&](int m, float sum) { statistics[2 * m + 1] = rsqrtf(fmaf(sum, inverse_columns, eps)); });
}

// One vector of a row with its statistics, normalised, weighted and rounded to T.
template <class T>
SIMT_DEVICE uint4 normalised(const uint4& packed, const uint4& weight, const uint4& bias, float mean, float scale) {
  constexpr int kWidth = simt::kVectorWidth<T>;
  float values[kWidth], weights[kWidth], biases[kWidth];
  simt::unpack_vector<T>(packed, values);
  simt::unpack_vector<T>(weight, weights);
  simt::unpack_vector<T>(bias, biases);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) values[j] = fmaf((values[j] - mean) * scale, weights[j], biases[j]);
  return simt::pack_vector<T>(values);
}

}  // namespace persimmon::cuda
