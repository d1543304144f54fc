// The loop that sparse_linear and its quantised forms share. Only for files compiled per instruction set.
#pragma once

#include "codes.h"
#include "sparse_linear.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int64_t kPrefetchBytes = 512;  // of each row; the processor's own prefetcher follows from there

PERSIMMON_INLINE void prefetch_bytes(const void* p, int64_t bytes) {
  const int64_t n = bytes < kPrefetchBytes ? bytes : kPrefetchBytes;
  for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
}

inline constexpr int kPass = 8;  // rows of W^T in a pass over the sums: enough streams, and registers for all of them

// `Weights` has members M and C, a type H that activations are converted to, bf16 or float, and
//   template <int R> void add(const int32_t* rows, const H* h, float* sums) const
// which adds h[m * kPass + r] times row rows[r] of W^T to the sums of row m of x, for r < R and m < M;
//   void prefetch(int64_t row) const,  which asks for the start of a row; and
//   void finish(float* sums) const,    which brings the sums into the order of the columns.
template <class Weights, class T>
struct Axpy {
  const Weights& weights;
  const SparseLinearParams& p;
  int64_t stop;  // the rows behind it are another thread's

  // h[r] for r < R; zero behind them
  PERSIMMON_INLINE void load_activations(const T (&x)[kPass], float* h) { store_up_to(h, load_up_to(x, kPass), kPass); }
  PERSIMMON_INLINE void load_activations(const T (&x)[kPass], bf16* h) { __builtin_memcpy(h, x, sizeof(x)); }

  template <int R>
  void pass(int64_t i, float* sums) const {
    const int64_t ahead = stop - i < 2 * R ? stop - i : 2 * R;
    for (int64_t next = R; next < ahead; ++next) weights.prefetch(p.rows[i + next]);
    typename Weights::H h[kStreamedRows * kPass];
    for (int64_t m = 0; m < p.M; ++m) {
      T x[kPass] = {};
      for (int r = 0; r < R; ++r) x[r] = static_cast<const T*>(p.x)[m * p.F + p.rows[i + r]];
      load_activations(x, h + m * kPass);
    }
    weights.template add<R>(p.rows + i, h, sums);
  }

  template <int R>
  void rest(int64_t i, int64_t last, float* sums) const {  // fewer than 2 R rows
    if (last - i >= R) {
      pass<R>(i, sums);
      i += R;
    }
    if constexpr (R > 1) rest<R / 2>(i, last, sums);
  }

  void chunk(int64_t first, int64_t last, float* sums) const {
    int64_t i = first;
    for (; i + kPass <= last; i += kPass) pass<kPass>(i, sums);
    rest<kPass / 2>(i, last, sums);
  }
};

template <class T, class Weights>
PERSIMMON_INLINE void axpy(const Weights& weights, const SparseLinearParams& p, int64_t begin, int64_t end) {
  const Axpy<Weights, T> axpy{weights, p, p.count * end / p.chunks};
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    float* sums = p.partials + chunk * p.blocks * p.M * kSumColumns;
    __builtin_memset(sums, 0, sizeof(float) * p.blocks * p.M * kSumColumns);
    const int64_t first = p.count * chunk / p.chunks, last = p.count * (chunk + 1) / p.chunks;
    axpy.chunk(first, last, sums);
    weights.finish(sums);
  }
}

// Calls body(column, columns in its block, sums of the first row of x) for blocks of columns.
template <class Body>
PERSIMMON_INLINE void for_each_sum_block(int64_t M, int64_t C, float* sums, Body&& body) {
  for (int64_t c = 0; c < C; c += kSumColumns, sums += M * kSumColumns) {
    body(c, C - c < kSumColumns ? C - c : kSumColumns, sums);
  }
}

// Adds h[m * kPass + r] * v[r] to the sums of M rows of x.
template <int R>
PERSIMMON_INLINE void add_products(const vf (&v)[R], const float* h, float* sum, int64_t M) {
  for (int64_t m = 0; m < M; ++m, h += kPass, sum += kSumColumns) {
    vf total = load(sum);
    for (int r = 0; r < R; ++r) total += v[r] * h[r];
    store(sum, total);
  }
}

// Weights of any element type (int8 codes too), widened to fp32 in registers.
template <class T>
struct WideColumns {
  using H = float;
  const T* weight;  // [F, C]
  int64_t M, C;

  template <int R>
  void add(const int32_t* rows, const float* h, float* sums) const {
    const T* w[R];
    for (int r = 0; r < R; ++r) w[r] = weight + rows[r] * C;
    if (M == 1) {
      vf factor[R];
      for (int r = 0; r < R; ++r) factor[r] = broadcast(h[r]);
      for_each_vector(C, [&](int64_t c, int count) {
        vf total = load(sums + c);  // a block of sums has room for a whole vector
        for (int r = 0; r < R; ++r) total += load_up_to(w[r] + c, count) * factor[r];
        store(sums + c, total);
      });
      return;
    }
    for_each_sum_block(M, C, sums, [&](int64_t c, int64_t columns, float* block) {
      for_each_vector(columns, [&](int64_t i, int count) {
        vf v[R];
        for (int r = 0; r < R; ++r) v[r] = load_up_to(w[r] + c + i, count);
        add_products(v, h, block + i, M);
      });
    });
  }

  void prefetch(int64_t row) const { prefetch_bytes(weight + row * C, C * sizeof(T)); }
  void finish(float*) const {}
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
