// The loop that sparse_linear and its quantised forms share. Only for files compiled per instruction set.
#pragma once

#include "codes.h"
#include "sparse_linear.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int kPass = 8;         // rows of W^T in a pass over the sums: as many as there are registers for
inline constexpr int64_t kLine = 64;    // bytes that memory delivers at once
inline constexpr int64_t kPage = 4096;  // bytes whose address is looked up at once

// How long before reading a line, bytes, it is asked for: into the second cache, and from there into the first.
inline constexpr int64_t kAhead = 2048, kNear = 256;
inline constexpr int kPagesAhead = 3;  // passes between reading rows and looking up where they are

// R rows read side by side.
template <int R>
struct Streams {
  const char* row[R];
  const char* next[R];  // those that are read afterwards
  int64_t bytes;        // in a row
};

template <int R>
PERSIMMON_INLINE Streams<R> streams_of(const void* weight, int64_t bytes, const int32_t* rows, const int32_t* next) {
  const char* base = static_cast<const char*>(weight);
  Streams<R> s;
  s.bytes = bytes;
  for (int r = 0; r < R; ++r) {
    s.row[r] = base + rows[r] * bytes;
    s.next[r] = base + next[r] * bytes;
  }
  return s;
}

// Called with every offset in turn, before reading what lies there: asks for the lines kAhead behind it, at the end of
// the rows for the first ones of the rows that follow. The processor's own prefetcher stops at the end of a page, and
// reads on where rows are left out. Into the second cache: the first has too few buffers for lines under way, so that
// 2048 bytes ahead cost a quarter there, and 256, the best, lose up to a fifth to this.
template <int R>
PERSIMMON_INLINE void prefetch(const Streams<R>& s, int64_t offset) {
  if (offset % kLine != 0) return;
  constexpr int kSecondCache = 2;
  const int64_t ahead = offset + (kAhead < s.bytes ? kAhead : s.bytes);
  for (int r = 0; r < R; ++r) {
    __builtin_prefetch(ahead < s.bytes ? s.row[r] + ahead : s.next[r] + (ahead - s.bytes), 0, kSecondCache);
  }
}

PERSIMMON_INLINE void look_up_pages(const void* data, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kPage) __builtin_prefetch(static_cast<const char*>(data) + i, 0, 2);
}

// `Weights` has a type H that activations are converted to, bf16 or float, and
//   void look_up(int64_t row) const,  which calls look_up_pages for all that it will read of a row;
//   template <int R> void add(const int32_t* rows, const int32_t* next, const H* h, float* sums) const
// which adds h[m * kPass + r] times row rows[r] of W^T to the sums of row m of x, for r < R and m < M, while asking for
// rows next[r]; and
//   void finish(float* sums) const,   which brings the sums into the order of the columns.
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
    const int64_t later = i + kPagesAhead * R;
    for (int64_t r = later; r < later + R && r < stop; ++r) weights.look_up(p.rows[r]);
    typename Weights::H h[kStreamedRows * kPass];
    for (int64_t m = 0; m < p.M; ++m) {
      T x[kPass] = {};
      for (int r = 0; r < R; ++r) x[r] = static_cast<const T*>(p.x)[m * p.F + p.rows[i + r]];
      load_activations(x, h + m * kPass);
    }
    const int32_t* rows = p.rows + i;
    weights.template add<R>(rows, i + 2 * R <= stop ? rows + R : rows, h, sums);
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
  const auto first = [&](int64_t chunk) {  // only the last chunk ends within a pass
    const int64_t row = (p.count + kPass - 1) / kPass * chunk / p.chunks * kPass;
    return row < p.count ? row : p.count;
  };
  const Axpy<Weights, T> axpy{weights, p, first(end)};
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    float* sums = p.partials + chunk * p.blocks * p.M * kSumColumns;
    __builtin_memset(sums, 0, sizeof(float) * p.blocks * p.M * kSumColumns);
    axpy.chunk(first(chunk), first(chunk + 1), sums);
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
  void add(const int32_t* rows, const int32_t* next, const float* h, float* sums) const {
    const Streams<R> streams = streams_of<R>(weight, C * sizeof(T), rows, next);
    const auto row = [&](int r) { return reinterpret_cast<const T*>(streams.row[r]); };
    if (M == 1) {
      vf factor[R];
      for (int r = 0; r < R; ++r) factor[r] = broadcast(h[r]);
      for_each_vector(C, [&](int64_t c, int count) {
        prefetch(streams, c * sizeof(T));
        vf total = load(sums + c);  // a block of sums has room for a whole vector
        for (int r = 0; r < R; ++r) total += load_up_to(row(r) + c, count) * factor[r];
        store(sums + c, total);
      });
      return;
    }
    for_each_sum_block(M, C, sums, [&](int64_t c, int64_t columns, float* block) {
      for_each_vector(columns, [&](int64_t i, int count) {
        prefetch(streams, (c + i) * sizeof(T));
        vf v[R];
        for (int r = 0; r < R; ++r) v[r] = load_up_to(row(r) + c + i, count);
        add_products(v, h, block + i, M);
      });
    });
  }

  void look_up(int64_t row) const { look_up_pages(weight + row * C, C * sizeof(T)); }
  void finish(float*) const {}
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
