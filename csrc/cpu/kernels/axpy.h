// The loop that sparse_linear and its quantised forms share. Only for files compiled per instruction set.
#pragma once

#include "codes.h"
#include "sparse_linear.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int kPass = 8;         // rows of W^T in a pass over the sums: as many as there are registers for
inline constexpr int64_t kLine = 64;    // bytes that memory delivers at once
inline constexpr int64_t kPage = 4096;  // bytes whose address is looked up at once
inline constexpr int64_t kNear = 128;   // bytes between a line that is read and one that is brought closer
inline constexpr int kSecondCache = 2;  // as the builtin names it
// Rows whose addresses are looked up at once, long before they are asked for. Page tables are read side by side, so one
// row at a time loses a tenth where pages are small; a whole pass at once holds up the lines of the rows in between.
inline constexpr int kLookUps = 4;

// The rows of W^T that a pass reads, those of the next pass, and those of two passes behind it: R of each.
struct Passes {
  const int32_t *rows, *next, *later;
};

// R rows read side by side, and where the lines lie that are asked for meanwhile.
template <int R>
struct Streams {
  const char *row[R], *next[R], *later[R];
  int64_t bytes;      // in a row
  int ahead = 0;      // of the next rows, the one whose lines are asked for
  int64_t asked = 0;  // bytes of it
};

// `bytes` of every row, of rows that lie `stride` bytes apart.
template <int R>
PERSIMMON_INLINE Streams<R> streams_of(const void* weight, int64_t stride, int64_t bytes, const Passes& passes) {
  const char* base = static_cast<const char*>(weight);
  Streams<R> s;
  s.bytes = bytes;
  for (int r = 0; r < R; ++r) {
    s.row[r] = base + passes.rows[r] * stride;
    s.next[r] = base + passes.next[r] * stride;
    s.later[r] = base + passes.later[r] * stride;
  }
  return s;
}

PERSIMMON_INLINE void look_up_pages(const char* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kPage) __builtin_prefetch(row + i, 0, kSecondCache);
}

// Lines to be asked for, from `next` to `end`.
struct Lines {
  const char *next, *end;
};

// Called with every offset in turn: with each line of the rows, as many lines of the next ones, row after row, so that
// memory delivers long runs. The processor's own prefetcher stops at the end of a page, and reads on where rows are
// left out.
template <int R>
PERSIMMON_INLINE Lines lines_ahead(Streams<R>& s, int64_t offset) {
  if (offset % kLine != 0 || s.ahead == R) return {};
  const char* next = s.next[s.ahead] + s.asked;
  if (s.asked == 0 && s.ahead % kLookUps == 0) {
    for (int r = s.ahead; r < R && r < s.ahead + kLookUps; ++r) look_up_pages(s.later[r], s.bytes);
  }
  s.asked += R * kLine;
  if (s.asked >= s.bytes) {
    s.asked = 0;
    ++s.ahead;
  }
  return {next, next + R * kLine};
}

// Asks for up to `count` of the lines. Into the second cache: the first has too few buffers for lines under way.
PERSIMMON_INLINE void ask(Lines& lines, int count) {
  for (int i = 0; i < count && lines.next < lines.end; ++i, lines.next += kLine) {
    __builtin_prefetch(lines.next, 0, kSecondCache);
  }
}

// No instruction moves across: compilers gather prefetches.
PERSIMMON_INLINE void keep_order() { asm volatile(""); }

// Asks for all of them at once.
template <int R>
PERSIMMON_INLINE void prefetch(Streams<R>& s, int64_t offset) {
  Lines lines = lines_ahead(s, offset);
  ask(lines, R);
}

// `Weights` stands for C columns of W^T. It has a type H that activations are converted to, bf16 or float;
//   static Weights of(const SparseLinearParams& p, int64_t first, int64_t C),   `first` a multiple of kSumColumns;
//   template <int R> void add(const Passes& passes, const H* h, float* sums) const,
// which adds h[m * kPass + r] times row passes.rows[r] of W^T to the sums of row m of x, for r < R and m < M, while
// asking for the next rows; and
//   void finish(float* sums) const,   which brings the sums into the order of the columns.
template <class Weights, class T>
struct Axpy {
  Weights weights;
  const SparseLinearParams& p;
  int64_t stop;  // the rows behind it are not read next

  // h[r] for r < R; zero behind them
  PERSIMMON_INLINE void load_activations(const T (&x)[kPass], float* h) { store_up_to(h, load_up_to(x, kPass), kPass); }
  PERSIMMON_INLINE void load_activations(const T (&x)[kPass], bf16* h) { __builtin_memcpy(h, x, sizeof(x)); }

  template <int R>
  void pass(int64_t i, float* sums) const {
    typename Weights::H h[kStreamedRows * kPass];
    for (int64_t m = 0; m < p.M; ++m) {
      T x[kPass] = {};
      for (int r = 0; r < R; ++r) x[r] = static_cast<const T*>(p.x)[m * p.F + p.rows[i + r]];
      load_activations(x, h + m * kPass);
    }
    const int32_t* rows = p.rows + i;
    const int32_t* next = i + 2 * R <= stop ? rows + R : rows;
    const int32_t* later = i + 4 * R <= stop ? rows + 3 * R : next;
    weights.template add<R>({rows, next, later}, h, sums);
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
PERSIMMON_INLINE void axpy(const SparseLinearParams& p, int64_t begin, int64_t end) {
  const auto first = [&](int64_t chunk) {  // only the last chunk ends within a pass
    const int64_t row = (p.count + kPass - 1) / kPass * chunk / p.chunks * kPass;
    return row < p.count ? row : p.count;
  };
  for (int64_t unit = begin; unit < end;) {
    const int64_t chunk = unit / p.blocks, block = unit % p.blocks, column = block * kSumColumns;
    const int64_t blocks = end - unit < p.blocks - block ? end - unit : p.blocks - block;
    const int64_t columns = p.C - column < blocks * kSumColumns ? p.C - column : blocks * kSumColumns;
    const int64_t last_chunk = blocks == p.blocks ? end / p.blocks : chunk + 1;  // whole rows go on in the next chunk
    const Axpy<Weights, T> axpy{Weights::of(p, column, columns), p, first(last_chunk)};
    float* sums = p.partials + unit * p.M * kSumColumns;
    __builtin_memset(sums, 0, sizeof(float) * blocks * p.M * kSumColumns);
    axpy.chunk(first(chunk), first(chunk + 1), sums);
    axpy.weights.finish(sums);
    unit += blocks;
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
  const T* weight;  // [F, C], rows `stride` elements apart
  int64_t stride, M, C;

  static WideColumns of(const SparseLinearParams& p, int64_t first, int64_t C) {
    return {static_cast<const T*>(p.weight) + first, p.C, p.M, C};
  }

  template <int R>
  void add(const Passes& passes, const float* h, float* sums) const {
    Streams<R> streams = streams_of<R>(weight, stride * sizeof(T), C * sizeof(T), passes);
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

  void finish(float*) const {}
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
