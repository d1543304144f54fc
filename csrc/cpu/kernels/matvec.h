// The loop that linear, linear_int8 and linear_int4 share. Only for files compiled per instruction set (see kernel.h).
#pragma once

#include "codes.h"
#include "linear.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int kPassWeights = 4;  // rows of W in a pass over several rows of x

// Rows of x in a pass over four rows of W, which later passes find in the cache: as many as there are registers for.
inline constexpr int kPassRows = kLanes == 16 ? 4 : 2;

template <class T>
PERSIMMON_INLINE void finish(const LinearParams& p, int64_t m, int64_t n, float v) {
  if (p.epilogue.bias != nullptr) v += load1(static_cast<const T*>(p.epilogue.bias) + n);
  if (p.epilogue.relu2) v = v < 0 ? 0 : v * v;  // a NaN stays a NaN
  if (p.epilogue.residual != nullptr) v += load1(static_cast<const T*>(p.epilogue.residual) + m * p.N + n);
  store1(static_cast<T*>(p.y) + m * p.N + n, v);
}

template <int R, int M, class Weights>
PERSIMMON_INLINE void matvec_pass(const Weights& weights, const LinearParams& p, int64_t n, int64_t m) {
  float sums[R][M];
  weights.template dot<R, M>(n, static_cast<const typename Weights::X*>(p.x) + m * p.K, sums);
  with_type(p.dtype, [&](auto tag) {
    for (int j = 0; j < M; ++j) {
      for (int i = 0; i < R; ++i) finish<decltype(tag)>(p, m + j, n + i, sums[i][j]);
    }
  });
}

template <int R, class Weights>
void matvec_rows(const Weights& weights, const LinearParams& p, int64_t n) {
  int64_t m = 0;
  for (; m + kPassRows <= p.M; m += kPassRows) matvec_pass<R, kPassRows>(weights, p, n, m);
  if constexpr (kPassRows == 4) {
    if (p.M - m == 3) return matvec_pass<R, 3>(weights, p, n, m);
    if (p.M - m == 2) return matvec_pass<R, 2>(weights, p, n, m);
  }
  if (p.M - m == 1) matvec_pass<R, 1>(weights, p, n, m);
}

// `Weights` has a type X, of the elements of x, and
//   template <int R, int M> void dot(int64_t n, const X* x, float (&sums)[R][M]) const
// which multiplies rows n, …, n + R - 1 of W with M rows of x.
template <class Weights>
PERSIMMON_INLINE void matvec(const Weights& weights, const LinearParams& p, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    int64_t n = group * kMatvecRows;
    const int64_t last = n + kMatvecRows < p.N ? n + kMatvecRows : p.N;
    if (p.M == 1 && n + kMatvecRows == last) {  // a single row of x leaves registers for more rows of W
      matvec_pass<kMatvecRows, 1>(weights, p, n, 0);
      continue;
    }
    for (; n + kPassWeights <= last; n += kPassWeights) matvec_rows<kPassWeights>(weights, p, n);
    for (; n < last; ++n) matvec_rows<1>(weights, p, n);
  }
}

// Weights of any element type (int8 codes too), widened to fp32 in registers.
template <class T>
struct WideWeights {
  using X = float;
  const T* weight;  // [N, K]
  int64_t K;

  template <int R, int M>
  PERSIMMON_INLINE void step(const T* w, const float* x, int64_t K, int count, vf (&sums)[R][M]) {
    vf xs[M];
    for (int m = 0; m < M; ++m) xs[m] = load_up_to(x + m * K, count);
    for (int r = 0; r < R; ++r) {
      const vf v = load_up_to(w + r * K, count);
      for (int m = 0; m < M; ++m) sums[r][m] += v * xs[m];
    }
  }

  template <int R, int M>
  void dot(int64_t n, const float* x, float (&out)[R][M]) const {
    const T* w = weight + n * K;
    vf sums[R][M] = {};
    int64_t k = 0;
    for (; k + kLanes <= K; k += kLanes) step(w + k, x + k, K, kLanes, sums);
    if (k < K) step(w + k, x + k, K, int(K - k), sums);
    for (int r = 0; r < R; ++r) {
      for (int m = 0; m < M; ++m) out[r][m] = reduce_add(sums[r][m]);
    }
  }
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
