// The loop that linear, linear_int8 and linear_int4 share. Only for files compiled per instruction set (see kernel.h).
//
// A tile is R rows of W times C rows of x: its sums stay in registers while K runs, a line of each row of W a step. The
// passes over the rows of x read the same R rows of W, of which the first finds them in the L2 cache: while a group of
// R rows is at work, the lines of the next one are fetched, in the order of memory and spread over its passes and
// steps. Without that, memory and arithmetic take turns: 4 to 16 rows of x lose 20 to 40%.
#pragma once

#include "codes.h"
#include "epilogue.h"
#include "linear.h"
#include "shuffle.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// As many rows of W and of x as there are registers for the sums.
inline constexpr int kThinRows = 8, kThinColumns = kLanes == 16 ? 2 : 1;  // where x has so few rows
inline constexpr int kWideRows = kLanes == 16 ? 6 : 4, kWideColumns = kLanes == 16 ? 4 : 2;

inline constexpr int64_t kNearLines = 8;   // from L2 into L1, so many steps ahead
inline constexpr int64_t kPageGroups = 3;  // so many groups ahead, the addresses of pages are looked up
inline constexpr int64_t kPageBytes = 4096;
inline constexpr int64_t kCachedBytes = 1 << 20;  // what L2 may hold already: fetching it ahead costs 10 to 30%

// What a kernel needs to know of the weights to walk along them.
struct Rows {
  const char* data;
  int64_t bytes;  // of a row
};

// Sums of kBlockRows rows of W, gathered for the epilogue: element [m][n] for row m of x. Behind a row there is room
// for what add_up_tile writes too much.
inline constexpr int kBlockRows = 48, kSlots = 8;  // a multiple of the lanes and of every R; at least every R
using Block = float[kMaxMatvecRows][kBlockRows + kSlots];

template <int R, int C>
PERSIMMON_INLINE void add_up_tile(const vf (&sums)[R][C], float* first) {
  static_assert(R <= kSlots);
  constexpr int kColumns = kLanes / kSlots;  // as many columns go through one transposing sum
  for (int c = 0; c < C; c += kColumns) {
    vf v[kLanes] = {};
    for (int j = 0; j < kColumns && c + j < C; ++j) {
      for (int r = 0; r < R; ++r) v[j * kSlots + r] = sums[r][c + j];
    }
    const vf totals = reduce_add_each(v);
    for (int j = 0; j < kColumns && c + j < C; ++j) {
      float* column = first + (c + j) * (kBlockRows + kSlots);
      __builtin_memcpy(column, reinterpret_cast<const float*>(&totals) + j * kSlots, sizeof(float) * kSlots);
    }
  }
}

// `rows` rows of W from n on.
PERSIMMON_INLINE void finish_block(const LinearParams& p, const float* row_scale, const Block& block, int64_t n,
                                   int64_t rows) {
  with_type(p.dtype, [&](auto tag) {
    for (int64_t m = 0; m < p.M; ++m) {
      for_each_vector(rows, [&](int64_t i, int count) {
        vf v = load(block[m] + i);
        if (row_scale != nullptr) v *= load_up_to(row_scale + n + i, count);
        store_product<decltype(tag)>(p.epilogue, p.y, p.N, m, n + i, v, count);
      });
    }
  });
}

// `ahead`: the first of kAhead rows to fetch meanwhile, or null. `first`: of the tile's elements of the block.
template <int R, int C, int kAhead, class Weights>
void tile(const Weights& weights, const LinearParams& p, int64_t n, int64_t m, const char* ahead, float* first) {
  const Rows rows = weights.rows;
  const char* w = rows.data + n * rows.bytes;
  const typename Weights::X* x = static_cast<const typename Weights::X*>(p.x) + m * Weights::kLine;
  vf sums[R][C] = {};
  const int64_t lines = rows.bytes / kLineBytes;
  for (int64_t line = 0; line < lines; ++line) {
    if (ahead != nullptr) {
      for (int r = 0; r < kAhead; ++r) __builtin_prefetch(ahead + (line * kAhead + r) * kLineBytes, 0, 2);
    }
    if (ahead != nullptr && m == 0) {  // the later passes do without
      for (int r = 0; r < R; ++r) __builtin_prefetch(w + r * rows.bytes + (line + kNearLines) * kLineBytes, 0, 3);
    }
    weights.step(w + line * kLineBytes, rows.bytes, n, line, x + line * p.M * Weights::kLine, sums);
  }
  if (const int64_t rest = rows.bytes % kLineBytes; rest > 0) {
    char last[R][kLineBytes] = {};
    for (int r = 0; r < R; ++r) __builtin_memcpy(last[r], w + r * rows.bytes + lines * kLineBytes, rest);
    weights.step(last[0], kLineBytes, n, lines, x + lines * p.M * Weights::kLine, sums);
  }
  add_up_tile(sums, first);
}

// Rows n, …, n + R - 1 of W. The passes over the rows of x are about equally wide, and fetch kAhead rows each.
template <int R, int kColumns, int kAhead, class Weights>
void group(const Weights& weights, const LinearParams& p, int64_t n, int64_t passes, Block& block, int64_t i) {
  const int64_t bytes = weights.rows.bytes;
  const char* next = p.N * bytes > kCachedBytes ? weights.rows.data + (n + R) * bytes : nullptr;
  if (next != nullptr) {
    const char* far = next + (kPageGroups - 1) * R * bytes;
    for (int64_t j = 0; j < R * bytes; j += kPageBytes) __builtin_prefetch(far + j, 0, 2);
  }
  int64_t m = 0;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const char* ahead = next != nullptr ? next + pass * kAhead * bytes : nullptr;
    float* first = block[m] + i;
    const int64_t columns = (p.M - m + passes - pass - 1) / (passes - pass);
    if constexpr (kColumns == 4) {
      if (columns == 4) tile<R, 4, kAhead>(weights, p, n, m, ahead, first);
      if (columns == 3) tile<R, 3, kAhead>(weights, p, n, m, ahead, first);
    }
    if constexpr (kColumns >= 2) {
      if (columns == 2) tile<R, 2, kAhead>(weights, p, n, m, ahead, first);
    }
    if (columns == 1) tile<R, 1, kAhead>(weights, p, n, m, ahead, first);
    m += columns;
  }
}

// As many groups of R rows as there are from row n + i on, in passes of at most kColumns rows of x.
template <int R, int kColumns, class Weights>
PERSIMMON_INLINE void sweep(const Weights& weights, const LinearParams& p, int64_t n, int64_t rows, Block& block,
                            int64_t& i) {
  const int64_t passes = (p.M + kColumns - 1) / kColumns;
  for (; i + R <= rows; i += R) {
    if (passes == 1) {
      group<R, kColumns, R>(weights, p, n + i, passes, block, i);
    } else if (passes == 2) {
      group<R, kColumns, (R + 1) / 2>(weights, p, n + i, passes, block, i);
    } else {
      group<R, kColumns, (R + 2) / 3>(weights, p, n + i, passes, block, i);
    }
  }
}

// `Weights` has
//   Rows rows;  const float* row_scale;            // a factor for each row of W, or null
//   using X;    static constexpr int64_t kLine;    // elements of packed x, and how many a line of a row of x takes
//   template <int R, int C>
//   void step(const char* w, int64_t stride, int64_t n, int64_t line, const X* x, vf (&sums)[R][C]) const
// which adds the products of one line: of row n + r of W at w + r * stride, of row c of x at x + c * kLine.
template <class Weights>
PERSIMMON_INLINE void matvec(const Weights& weights, const LinearParams& p, int64_t begin, int64_t end) {
  Block block;
  for (int64_t n = begin; n < end; n += kBlockRows) {
    const int64_t rows = end - n < kBlockRows ? end - n : kBlockRows;
    int64_t i = 0;
    if (p.M <= kThinColumns) sweep<kThinRows, kThinColumns>(weights, p, n, rows, block, i);
    sweep<kWideRows, kWideColumns>(weights, p, n, rows, block, i);
    sweep<1, kWideColumns>(weights, p, n, rows, block, i);
    finish_block(p, weights.row_scale, block, n, rows);
  }
}

// Weights of any element type (int8 codes too), widened to fp32 in registers.
template <class T>
struct WideWeights {
  using X = float;
  static constexpr int64_t kLine = kLineBytes / int64_t(sizeof(T));
  Rows rows;
  const float* row_scale;

  template <int R, int C>
  PERSIMMON_INLINE void step(const char* w, int64_t stride, int64_t, int64_t, const float* x, vf (&sums)[R][C]) {
    for (int64_t i = 0; i < kLine; i += kLanes) {
      vf xs[C];
      for (int c = 0; c < C; ++c) xs[c] = load(x + c * kLine + i);
      for (int r = 0; r < R; ++r) {
        const vf v = load(reinterpret_cast<const T*>(w + r * stride) + i);
        for (int c = 0; c < C; ++c) sums[r][c] += v * xs[c];
      }
    }
  }
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
