// The loop that sparse_linear and its quantised forms share. Only for files compiled per instruction set.
#pragma once

#include "codes.h"
#include "sparse_linear.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// The sum of column c for the first of M rows of x; the next row's is kSumColumns further.
PERSIMMON_INLINE float* sum_at(float* sums, int64_t M, int64_t c) {
  return sums + c / kSumColumns * kSumColumns * M + c % kSumColumns;
}

// `Weights` has a type H, of the activations, and
//   template <int R> void add(const int32_t* rows, const H* h, float* sums) const
// which adds h[m * kAxpyRows + r] times row rows[r] of W^T to the sums of row m of x, for r < R and m < M;
//   void prefetch(int64_t row) const,  which asks for the start of a row; and
//   void finish(float* sums) const,    which brings the sums into the order of the columns.
template <class Weights>
PERSIMMON_INLINE void axpy(const Weights& weights, const SparseLinearParams& p, int64_t begin, int64_t end) {
  using H = typename Weights::H;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    float* sums = p.partials + chunk * p.blocks * p.M * kSumColumns;
    __builtin_memset(sums, 0, sizeof(float) * p.blocks * p.M * kSumColumns);
    const int64_t first = chunk * p.rows_per_chunk;
    const int64_t last = first + p.rows_per_chunk < p.count ? first + p.rows_per_chunk : p.count;
    for (int64_t i = first; i < last; i += kAxpyRows) {
      const H* h = static_cast<const H*>(p.h) + i * p.M;
      if (i + kAxpyRows <= last) {
        for (int64_t next = i + kAxpyRows; next < i + 2 * kAxpyRows && next < last; ++next) {
          weights.prefetch(p.rows[next]);
        }
        weights.template add<kAxpyRows>(p.rows + i, h, sums);
      } else {
        for (int64_t r = 0; i + r < last; ++r) weights.template add<1>(p.rows + i + r, h + r, sums);
      }
    }
    weights.finish(sums);
  }
}

inline constexpr int64_t kPrefetchBytes = 1024;  // of each row; the processor's own prefetcher follows from there

PERSIMMON_INLINE void prefetch_bytes(const void* p, int64_t bytes) {
  const int64_t n = bytes < kPrefetchBytes ? bytes : kPrefetchBytes;
  for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
}

// Weights of any element type (int8 codes too), widened to fp32 in registers.
template <class T>
struct WideColumns {
  using H = float;
  const T* weight;  // [F, C]
  int64_t M, C;

  template <int R>
  PERSIMMON_INLINE void step(const T* const (&w)[R], const float* h, float* sum, int64_t M, int64_t c, int count) {
    vf v[R];
    for (int r = 0; r < R; ++r) v[r] = load_up_to(w[r] + c, count);
    for (int64_t m = 0; m < M; ++m, sum += kSumColumns) {
      vf total = load(sum);  // a block of sums has room for a whole vector
      for (int r = 0; r < R; ++r) total += v[r] * h[m * kAxpyRows + r];
      store(sum, total);
    }
  }

  template <int R>
  void add(const int32_t* rows, const float* h, float* sums) const {
    const T* w[R];
    for (int r = 0; r < R; ++r) w[r] = weight + rows[r] * C;
    int64_t c = 0;
    for (; c + kLanes <= C; c += kLanes) step(w, h, sum_at(sums, M, c), M, c, kLanes);
    if (c < C) step(w, h, sum_at(sums, M, c), M, c, int(C - c));
  }

  void prefetch(int64_t row) const { prefetch_bytes(weight + row * C, C * sizeof(T)); }
  void finish(float*) const {}
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
