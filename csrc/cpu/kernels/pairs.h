// Pairs of bf16, which one instruction multiplies and sums into fp32: products are exact, a step covers two elements of
// the inner dimension. Only for files compiled per instruction set (see kernel.h), and only some have it.
#pragma once

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// sum + a * b; for pairs, of both members.
PERSIMMON_INLINE vf multiply_add(vf sum, vf a, vf b) { return sum + a * b; }

// What a shuffle moves: elements in fp32, whole pairs as they are.
template <class T>
PERSIMMON_INLINE vf load_bits(const T* p, int count) {
  return load_up_to(p, count);
}

#if defined(__AVX512BF16__)
struct bf16_pair {
  bf16 first, second;
};

template <class T>
PERSIMMON_INLINE const bf16_pair* pairs(const T* data) {
  return reinterpret_cast<const bf16_pair*>(data);
}

PERSIMMON_INLINE __m512bh load(const bf16_pair* p) { return (__m512bh)_mm512_loadu_si512(p); }
PERSIMMON_INLINE vf load_bits(const bf16_pair* p, int) { return bit_cast<vf>(load(p)); }  // only ever whole vectors
PERSIMMON_INLINE __m512bh broadcast(bf16_pair x) { return (__m512bh)_mm512_set1_epi32(bit_cast<int>(x)); }
PERSIMMON_INLINE vf multiply_add(vf sum, __m512bh a, __m512bh b) { return (vf)_mm512_dpbf16_ps((__m512)sum, a, b); }

// kLanes pairs of y and x: (y[0], x[0]), (y[1], x[1]), …
PERSIMMON_INLINE __m512bh interleave(const bf16* y, const bf16* x) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(y)));
  const __m512i high = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return (__m512bh)_mm512_permutex2var_epi16(low, _mm512_load_si512(kOrder), high);
}

// dst [count / 2, n] = pairs of rows 2 i and 2 i + 1 of n elements, a multiple of kLanes; an odd last row is left out.
PERSIMMON_INLINE void pair_rows(const bf16* src, int64_t row_stride, int64_t count, int64_t n, float* dst) {
  for (int64_t r = 0; r + 2 <= count; r += 2) {
    for (int64_t i = 0; i < n; i += kLanes) {
      const __m512bh pair = interleave(src + r * row_stride + i, src + (r + 1) * row_stride + i);
      _mm512_storeu_si512(dst + r / 2 * n + i, (__m512i)pair);
    }
  }
}

// x [n] rounded to bf16, as pairs; n is rounded up to a multiple of 2 kLanes.
PERSIMMON_INLINE void to_pairs(const float* x, int64_t n, void* pairs) {
  for (int64_t i = 0; i < n; i += 2 * kLanes) {
    const auto v = _mm512_cvtne2ps_pbh((__m512)load(x + i + kLanes), (__m512)load(x + i));
    _mm512_storeu_si512(static_cast<bf16*>(pairs) + i, (__m512i)v);
  }
}
#endif

}  // namespace persimmon::cpu::PERSIMMON_ISA
