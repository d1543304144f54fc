// Rows of W^T in pairs, for the bf16 dot product. Only for files compiled per instruction set.
#pragma once

#include "axpy.h"

#if defined(__AVX512BF16__)

namespace persimmon::cpu::PERSIMMON_ISA {

// Up to 32 columns of two rows, zero where a mask is not set: lane i of `low` and `high` holds a column of both,
// in bf16.
struct Pairs {
  __m512bh low, high;
};

PERSIMMON_INLINE __m512i load_line(const bf16* p, __mmask32 mask) { return _mm512_maskz_loadu_epi16(mask, p); }
PERSIMMON_INLINE __m256i load_line(const int8_t* p, __mmask32 mask) { return _mm256_maskz_loadu_epi8(mask, p); }

// Columns 8 L + k with k < 4 are in `low` and the others in `high`.
PERSIMMON_INLINE Pairs pair_up(__m512i a, __m512i b) {
  return {(__m512bh)_mm512_unpacklo_epi16(a, b), (__m512bh)_mm512_unpackhi_epi16(a, b)};
}

// The first 16 columns are in `low`.
PERSIMMON_INLINE Pairs pair_up(__m256i a, __m256i b) {
  const auto pair = [](__m128i u, __m128i v) {  // the upper halves of what are whole numbers of up to 8 bits in fp32
    const __m512i even = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(u));
    const __m512i odd = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v));
    return (__m512bh)_mm512_or_si512(_mm512_srli_epi32(even, 16), odd);
  };
  return {pair(_mm256_castsi256_si128(a), _mm256_castsi256_si128(b)),
          pair(_mm256_extracti128_si256(a, 1), _mm256_extracti128_si256(b, 1))};
}

// Activations in bf16; weights that bf16 holds exactly: its own and int8 codes.
template <class T>
struct PairedColumns {
  using H = bf16;
  using Line = decltype(load_line(static_cast<const T*>(nullptr), 0));
  static constexpr __mmask32 kAll = ~__mmask32(0);
  const T* weight;  // [F, C], rows `stride` elements apart
  int64_t stride, M, C;

  static PairedColumns of(const SparseLinearParams& p, int64_t first, int64_t C) {
    return {static_cast<const T*>(p.weight) + first, p.C, p.M, C};
  }

  PERSIMMON_INLINE __m512bh factor(const bf16* h) {
    uint32_t pair;
    __builtin_memcpy(&pair, h, 4);
    return (__m512bh)_mm512_set1_epi32(int(pair));
  }

  // Of the first `columns`.
  PERSIMMON_INLINE __mmask32 first(int64_t columns) { return columns >= 32 ? kAll : (__mmask32(1) << columns) - 1; }

  template <int R>
  PERSIMMON_INLINE void load_lines(const Streams<R>& s, int64_t c, __mmask32 mask, Line (&lines)[R]) {
    for (int r = 0; r < R; ++r) lines[r] = load_line(reinterpret_cast<const T*>(s.row[r]) + c, mask);
  }

  template <int R>
  PERSIMMON_INLINE void pair_lines(const Line (&lines)[R], Pairs (&pairs)[(R + 1) / 2]) {
    for (int r = 0; r + 1 < R; r += 2) pairs[r / 2] = pair_up(lines[r], lines[r + 1]);
    if (R == 1) pairs[0] = pair_up(lines[0], Line{});  // zeros: an infinity times 0 would not be one
  }

  template <int R>
  PERSIMMON_INLINE void load_pairs(const Streams<R>& s, int64_t c, __mmask32 mask, Pairs (&pairs)[(R + 1) / 2]) {
    Line lines[R];
    load_lines(s, c, mask, lines);
    pair_lines(lines, pairs);
  }

  // Into the first cache. Several rows of x gain by it, a single one loses.
  template <int R>
  PERSIMMON_INLINE void prefetch_near(const Streams<R>& s, int64_t c) {
    for (int r = 0; r < R; ++r) __builtin_prefetch(s.row[r] + c * sizeof(T) + kNear);
  }

  template <int N>
  PERSIMMON_INLINE void add_dots(const Pairs (&pairs)[N], const __m512bh (&factors)[N], float* sum) {
    __m512 low = _mm512_loadu_ps(sum), high = _mm512_loadu_ps(sum + 16);
    for (int i = 0; i < N; ++i) {
      low = _mm512_dpbf16_ps(low, pairs[i].low, factors[i]);
      high = _mm512_dpbf16_ps(high, pairs[i].high, factors[i]);
    }
    _mm512_storeu_ps(sum, low);
    _mm512_storeu_ps(sum + 16, high);
  }

  template <int N>
  PERSIMMON_INLINE void load_factors(const bf16* h, __m512bh (&factors)[N]) {
    for (int i = 0; i < N; ++i) factors[i] = factor(h + 2 * i);
  }

  // The products with row m of x, whose sums are those of a column in a block.
  template <int N>
  PERSIMMON_INLINE void add_row(const Pairs (&pairs)[N], const bf16* h, int64_t m, float* sums) {
    __m512bh factors[N];
    load_factors(h + m * kPass, factors);
    add_dots(pairs, factors, sums + m * kSumColumns);
  }

  template <int R>
  void add_to_one_row(Streams<R>& streams, const bf16* h, float* sums) const {
    Pairs pairs[(R + 1) / 2];
    __m512bh factors[(R + 1) / 2];
    load_factors(h, factors);
    const auto step = [&](int64_t c, __mmask32 mask) {
      prefetch(streams, c * sizeof(T));
      load_pairs(streams, c, mask, pairs);
      add_dots(pairs, factors, sums + c);
    };
    int64_t c = 0;
    for (; c + 32 <= C; c += 32) step(c, kAll);  // without a mask's cost
    if (c < C) step(c, first(C - c));
  }

  // Bound by memory. Many requests at once hold up the loads behind them: they come after the loads, and those for the
  // next rows a few with each row of x.
  template <int R>
  void add_to_few_rows(Streams<R>& streams, const bf16* h, float* sums) const {
    Pairs pairs[(R + 1) / 2];
    const int share = int((R + M - 1) / M);
    for_each_sum_block(M, C, sums, [&](int64_t c, int64_t columns, float* block) {
      for (int64_t i = 0; i < columns; i += 32) {
        load_pairs(streams, c + i, first(columns - i), pairs);
        keep_order();
        prefetch_near(streams, c + i);
        keep_order();
        Lines lines = lines_ahead(streams, (c + i) * sizeof(T));
        for (int64_t m = 0; m < M; ++m) {
          add_row(pairs, h, m, block + i);
          ask(lines, share);
        }
      }
    });
  }

  // Bound by arithmetic: lines are loaded while those before them are at work.
  template <int R>
  void add_to_many_rows(Streams<R>& streams, const bf16* h, float* sums) const {
    Pairs pairs[(R + 1) / 2];
    Line lines[R];
    load_lines(streams, 0, first(C), lines);
    for_each_sum_block(M, C, sums, [&](int64_t c, int64_t columns, float* block) {
      for (int64_t i = 0; i < columns; i += 32) {
        if (sizeof(T) == 2) prefetch_near(streams, c + i);  // int8 loses by it
        prefetch(streams, (c + i) * sizeof(T));
        pair_lines(lines, pairs);
        const int64_t next = c + i + 32 < C ? c + i + 32 : c + i;  // at the end, the same once more
        load_lines(streams, next, first(C - next), lines);
        for (int64_t m = 0; m < M; ++m) add_row(pairs, h, m, block + i);
      }
    });
  }

  template <int R>
  void add(const Passes& passes, const bf16* h, float* sums) const {
    Streams<R> streams = streams_of<R>(weight, stride * sizeof(T), C * sizeof(T), passes);
    if (M == 1) return add_to_one_row(streams, h, sums);
    const bool few = sizeof(T) == 2 && M < kPass;  // int8 codes take too much arithmetic
    few ? add_to_few_rows(streams, h, sums) : add_to_many_rows(streams, h, sums);
  }

  void finish(float* sums) const {
    if constexpr (sizeof(T) == 1) return;
    const __m512i left = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i right = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const int64_t blocks = (C + kSumColumns - 1) / kSumColumns;
    for (int64_t i = 0; i < blocks * M * kSumColumns; i += 32) {
      const __m512 low = _mm512_loadu_ps(sums + i), high = _mm512_loadu_ps(sums + i + 16);
      _mm512_storeu_ps(sums + i, _mm512_permutex2var_ps(low, left, high));
      _mm512_storeu_ps(sums + i + 16, _mm512_permutex2var_ps(low, right, high));
    }
  }
};

}  // namespace persimmon::cpu::PERSIMMON_ISA

#endif
