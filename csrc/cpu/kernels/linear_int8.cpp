#include "linear.h"
#include "matvec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

#if defined(__AVX512BF16__)
// Every code is a bf16 number.
struct Int8Bf16Weights {
  using X = bf16;
  static constexpr int64_t kLine = kLineBytes;
  Rows rows;
  const float* row_scale;

  PERSIMMON_INLINE __m512bh to_bf16(const char* codes) {
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(codes + 16))));
    return _mm512_cvtne2ps_pbh(high, low);
  }

  template <int R, int C>
  PERSIMMON_INLINE void step(const char* w, int64_t stride, int64_t, int64_t, const bf16* x, vf (&sums)[R][C]) {
    for (int64_t i = 0; i < kLine; i += 32) {
      __m512bh xs[C];
      for (int c = 0; c < C; ++c) xs[c] = (__m512bh)_mm512_loadu_si512(x + c * kLine + i);
      for (int r = 0; r < R; ++r) {
        const __m512bh v = to_bf16(w + r * stride + i);
        for (int c = 0; c < C; ++c) sums[r][c] = (vf)_mm512_dpbf16_ps((__m512)sums[r][c], v, xs[c]);
      }
    }
  }
};
#endif

void linear_int8(const LinearParams& p, int64_t begin, int64_t end) {
  const Rows rows{static_cast<const char*>(p.weight), p.K};
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) return matvec(Int8Bf16Weights{rows, p.scale}, p, begin, end);
#endif
  matvec(WideWeights<int8_t>{rows, p.scale}, p, begin, end);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
