// The online softmax of the forward attention kernels, on scores as the tensor cores leave them: element (m, n, i) of a
// warp's result belongs to its row 16 m + lane / 4 + 8 (i / 2) and to column 8 n + 2 (lane % 4) + i % 2.
#pragma once
#include "attention_range.cuh"

namespace persimmon::cuda {

// Hides the scores of keys that a query does not see. Rows are queries from `first_query` on, columns keys from
// `first_key` on.
template <int kM, int kN>
SIMT_DEVICE void hide_keys(Result<kM, kN>& scores, int first_key, const VisibleKeys& visible, int first_query) {
  const int lane = threadIdx.x % simt::kWarpSize;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row_end = visible.end_of(first_query + m * 16 + r * 8 + lane / 4);
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = first_key + n * 8 + lane % 4 * 2 + i;
          if (key < visible.start || key >= row_end) scores[m][n][2 * r + i] = -INFINITY;
        }
      }
    }
  }
}

// Scores become probabilities relative to the running maximum. `correction` is what brings sums of before to the new
// maximum; row_sum is a lane's part of its rows. `scale` takes scores to exponents of 2.
template <int kM, int kN>
SIMT_DEVICE void online_softmax(Result<kM, kN>& scores, float (&row_max)[kM][2], float (&row_sum)[kM][2],
                                float (&correction)[kM][2], float scale) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float maximum = row_max[m][r];
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        maximum = fmaxf(maximum, fmaxf(scores[m][n][2 * r], scores[m][n][2 * r + 1]));
      }
      maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
      const float shift = maximum == -INFINITY ? 0.0f : maximum * scale;  // no key seen yet: all exponents are -inf
      correction[m][r] = simt::fast_exp2(row_max[m][r] * scale - shift);
      row_max[m][r] = maximum;
      float sum = row_sum[m][r] * correction[m][r];
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          scores[m][n][i] = simt::fast_exp2(scores[m][n][i] * scale - shift);
          sum += scores[m][n][i];
        }
      }
      row_sum[m][r] = sum;
    }
  }
}

template <int kM>
SIMT_DEVICE void rescale(Result<kM, kHeadDim>& out, const float (&correction)[kM][2]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] *= correction[m][i / 2];
    }
  }
}

// What the sums of the output are to be multiplied by; writes the log-sum-exps of the rows before `queries`.
template <int kM>
SIMT_DEVICE void finish_softmax(const float (&row_max)[kM][2], const float (&row_sum)[kM][2], float (&inverse)[kM][2],
                                float scale, float* lse, int first_query, int queries) {
  const int lane = threadIdx.x % simt::kWarpSize;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = row_sum[m][r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      inverse[m][r] = sum == 0.0f ? 0.0f : 1.0f / sum;  // no key seen
      const int query = first_query + m * 16 + r * 8 + lane / 4;
      if (lane % 4 == 0 && query < queries) lse[query] = sum == 0.0f ? -INFINITY : row_max[m][r] * scale + logf(sum);
    }
  }
}

}  // namespace persimmon::cuda
