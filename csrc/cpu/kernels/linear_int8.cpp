#include "linear.h"
#include "matvec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

#if defined(__AVX512BF16__)
// Every code is a bf16 number: the upper half of an fp32 one.
struct Int8Bf16Weights {
  using X = bf16;
  static constexpr int64_t kLine = kLineBytes;
  Rows rows;
  const float* row_scale;
  __m512i upper_halves;

  static __m512i make_upper_halves() {
    alignas(64) uint16_t index[32];
    for (int i = 0; i < 32; ++i) index[i] = uint16_t(2 * i + 1);
    return _mm512_load_si512(index);
  }

  PERSIMMON_INLINE __m512i widen(const char* codes) {
    return (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes)));
  }

  template <int R, int C>
  void step(const char* w, int64_t stride, int64_t, int64_t, const bf16* x, vf (&sums)[R][C]) const {
    for (int64_t i = 0; i < kLine; i += 32) {
      __m512bh xs[C];
      for (int c = 0; c < C; ++c) xs[c] = (__m512bh)_mm512_loadu_si512(x + c * kLine + i);
      for (int r = 0; r < R; ++r) {
        const char* codes = w + r * stride + i;
        // One permute is faster here than the conversion from fp32, or a shift and an or.
        const __m512bh v = (__m512bh)_mm512_permutex2var_epi16(widen(codes), upper_halves, widen(codes + 16));
        for (int c = 0; c < C; ++c) sums[r][c] = (vf)_mm512_dpbf16_ps((__m512)sums[r][c], v, xs[c]);
      }
    }
  }
};
#endif

void linear_int8(const LinearParams& p, int64_t begin, int64_t end) {
  const Rows rows{static_cast<const char*>(p.weight), p.K};
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16)
    return matvec(Int8Bf16Weights{rows, p.scale, Int8Bf16Weights::make_upper_halves()}, p, begin, end);
#endif
  matvec(WideWeights<int8_t>{rows, p.scale}, p, begin, end);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
