#include "linear.h"

#include "matvec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

#if defined(__AVX512BF16__)
struct Bf16Weights {
  using X = bf16;
  const bf16* weight;  // [N, K]
  int64_t K;

  PERSIMMON_INLINE __m512bh load_pairs(const bf16* p, __mmask32 mask) {
    return (__m512bh)_mm512_maskz_loadu_epi16(mask, p);
  }

  template <int R, int M>
  PERSIMMON_INLINE void step(const bf16* w, const bf16* x, int64_t K, __mmask32 mask, __m512 (&sums)[R][M]) {
    __m512bh xs[M];
    for (int m = 0; m < M; ++m) xs[m] = load_pairs(x + m * K, mask);
    for (int r = 0; r < R; ++r) {
      const __m512bh v = load_pairs(w + r * K, mask);
      for (int m = 0; m < M; ++m) sums[r][m] = _mm512_dpbf16_ps(sums[r][m], v, xs[m]);
    }
  }

  template <int R, int M>
  void dot(int64_t n, const bf16* x, float (&out)[R][M]) const {
    const bf16* w = weight + n * K;
    __m512 sums[R][M];
    for (auto& row : sums) {
      for (auto& sum : row) sum = _mm512_setzero_ps();
    }
    int64_t k = 0;
    for (; k + 32 <= K; k += 32) step(w + k, x + k, K, ~__mmask32(0), sums);
    if (k < K) step(w + k, x + k, K, (__mmask32(1) << (K - k)) - 1, sums);
    for (int r = 0; r < R; ++r) {
      for (int m = 0; m < M; ++m) out[r][m] = _mm512_reduce_add_ps(sums[r][m]);
    }
  }
};
#endif

void linear(const LinearParams& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) {
    return matvec(Bf16Weights{static_cast<const bf16*>(p.weight), p.K}, p, begin, end);
  }
#endif
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    matvec(WideWeights<T>{static_cast<const T*>(p.weight), p.K}, p, begin, end);
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
