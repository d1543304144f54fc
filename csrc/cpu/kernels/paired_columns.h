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

// Columns 8 L + k with k < 4 are in `low` and the others in `high`.
PERSIMMON_INLINE Pairs load_pairs(const bf16* a, __mmask32 a_mask, const bf16* b, __mmask32 b_mask) {
  const __m512i u = _mm512_maskz_loadu_epi16(a_mask, a), v = _mm512_maskz_loadu_epi16(b_mask, b);
  return {(__m512bh)_mm512_unpacklo_epi16(u, v), (__m512bh)_mm512_unpackhi_epi16(u, v)};
}

// The first 16 columns are in `low`.
PERSIMMON_INLINE Pairs load_pairs(const int8_t* a, __mmask32 a_mask, const int8_t* b, __mmask32 b_mask) {
  const __m256i u = _mm256_maskz_loadu_epi8(a_mask, a), v = _mm256_maskz_loadu_epi8(b_mask, b);
  const auto pair = [](__m128i u, __m128i v) {  // the upper halves of what are whole numbers of up to 8 bits in fp32
    const __m512i even = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(u));
    const __m512i odd = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v));
    return (__m512bh)_mm512_or_si512(_mm512_srli_epi32(even, 16), odd);
  };
  return {pair(_mm256_castsi256_si128(u), _mm256_castsi256_si128(v)),
          pair(_mm256_extracti128_si256(u, 1), _mm256_extracti128_si256(v, 1))};
}

// Activations in bf16; weights that bf16 holds exactly: its own and int8 codes.
template <class T>
struct PairedColumns {
  using H = bf16;
  const T* weight;  // [F, C]
  int64_t M, C;

  PERSIMMON_INLINE __m512bh factor(const bf16* h) {
    uint32_t pair;
    __builtin_memcpy(&pair, h, 4);
    return (__m512bh)_mm512_set1_epi32(int(pair));
  }

  PERSIMMON_INLINE __mmask32 first(int64_t n) { return n >= 32 ? ~__mmask32(0) : (__mmask32(1) << n) - 1; }

  template <int R>
  PERSIMMON_INLINE void load_rows(Streams<R>& s, int64_t c, __mmask32 mask, Pairs (&pairs)[(R + 1) / 2]) {
    prefetch(s, c * sizeof(T));
    const auto row = [&](int r) { return reinterpret_cast<const T*>(s.row[r]) + c; };
    for (int r = 0; r + 1 < R; r += 2) pairs[r / 2] = load_pairs(row(r), mask, row(r + 1), mask);
    if (R == 1) pairs[0] = load_pairs(row(0), mask, row(0), 0);  // zeros: an infinity times 0 would not be one
  }

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

  template <int R>
  void add(const Passes& passes, const bf16* h, float* sums) const {
    constexpr int kPairs = (R + 1) / 2;
    Streams<R> streams = streams_of<R>(weight, C * sizeof(T), passes);
    Pairs pairs[kPairs];
    __m512bh factors[kPairs];
    if (M == 1) {
      for (int i = 0; i < kPairs; ++i) factors[i] = factor(h + 2 * i);
      int64_t c = 0;
      for (; c + 32 <= C; c += 32) {
        load_rows(streams, c, ~__mmask32(0), pairs);
        add_dots(pairs, factors, sums + c);
      }
      if (c < C) {
        load_rows(streams, c, first(C - c), pairs);
        add_dots(pairs, factors, sums + c);
      }
      return;
    }
    for_each_sum_block(M, C, sums, [&](int64_t c, int64_t columns, float* block) {
      for (int64_t i = 0; i < columns; i += 32) {
        // bf16 with several rows of x gains by this; int8 and a single row of x lose.
        if (sizeof(T) == 2) prefetch_near(streams, c + i);
        load_rows(streams, c + i, first(columns - i), pairs);
        float* sum = block + i;
        for (int64_t m = 0; m < M; ++m, sum += kSumColumns) {
          for (int k = 0; k < kPairs; ++k) factors[k] = factor(h + m * kPass + 2 * k);
          add_dots(pairs, factors, sum);
        }
      }
    });
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
