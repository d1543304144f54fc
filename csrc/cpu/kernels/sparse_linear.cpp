#include "sparse_linear.h"

#include "axpy.h"

namespace persimmon::cpu::PERSIMMON_ISA {

#if defined(__AVX512BF16__)
// Two rows interleaved into pairs for the bf16 dot product. Of 32 columns c = 8 L + k, the first vector of sums holds
// those with k < 4 and the second the others, until finish() puts them in order.
struct Bf16Columns {
  using H = bf16;
  const bf16* weight;  // [F, C]
  int64_t M, C, blocks;

  template <int R>
  PERSIMMON_INLINE void step(const bf16* const (&w)[R], const bf16* h, float* sum, int64_t M, int64_t c,
                             __mmask32 mask) {
    constexpr int kPairs = (R + 1) / 2;
    __m512bh low[kPairs], high[kPairs];
    for (int r = 0; r < kPairs; ++r) {
      const __m512i a = _mm512_maskz_loadu_epi16(mask, w[2 * r] + c);
      const __m512i b = R > 1 ? _mm512_maskz_loadu_epi16(mask, w[R > 1 ? 2 * r + 1 : 0] + c) : _mm512_setzero_si512();
      low[r] = (__m512bh)_mm512_unpacklo_epi16(a, b);
      high[r] = (__m512bh)_mm512_unpackhi_epi16(a, b);
    }
    for (int64_t m = 0; m < M; ++m, sum += kSumColumns) {
      __m512 first = _mm512_loadu_ps(sum), second = _mm512_loadu_ps(sum + 16);
      for (int r = 0; r < kPairs; ++r) {
        uint32_t pair = 0;
        __builtin_memcpy(&pair, h + m * kAxpyRows + 2 * r, R > 1 ? 4 : 2);
        const __m512bh factor = (__m512bh)_mm512_set1_epi32(int(pair));
        first = _mm512_dpbf16_ps(first, low[r], factor);
        second = _mm512_dpbf16_ps(second, high[r], factor);
      }
      _mm512_storeu_ps(sum, first);
      _mm512_storeu_ps(sum + 16, second);
    }
  }

  template <int R>
  void add(const int32_t* rows, const bf16* h, float* sums) const {
    const bf16* w[R];
    for (int r = 0; r < R; ++r) w[r] = weight + rows[r] * C;
    int64_t c = 0;
    for (; c + 32 <= C; c += 32) step(w, h, sum_at(sums, M, c), M, c, ~__mmask32(0));
    if (c < C) step(w, h, sum_at(sums, M, c), M, c, (__mmask32(1) << (C - c)) - 1);
  }

  void prefetch(int64_t row) const { prefetch_bytes(weight + row * C, C * sizeof(bf16)); }

  void finish(float* sums) const {
    const __m512i left = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i right = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int64_t i = 0; i < blocks * M * kSumColumns; i += 32) {
      const __m512 first = _mm512_loadu_ps(sums + i), second = _mm512_loadu_ps(sums + i + 16);
      _mm512_storeu_ps(sums + i, _mm512_permutex2var_ps(first, left, second));
      _mm512_storeu_ps(sums + i + 16, _mm512_permutex2var_ps(first, right, second));
    }
  }
};
#endif

void sparse_linear(const SparseLinearParams& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) {
    return axpy(Bf16Columns{static_cast<const bf16*>(p.weight), p.M, p.C, p.blocks}, p, begin, end);
  }
#endif
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    axpy(WideColumns<T>{static_cast<const T*>(p.weight), p.M, p.C}, p, begin, end);
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
