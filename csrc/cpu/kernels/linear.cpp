#include "linear.h"

#include "matvec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

#if defined(__AVX512BF16__)
struct Bf16Weights {
  using X = bf16;
  static constexpr int64_t kLine = kLineBytes / 2;
  Rows rows;
  const float* row_scale;

  template <int R, int C>
  PERSIMMON_INLINE void step(const char* w, int64_t stride, int64_t, int64_t, const bf16* x, vf (&sums)[R][C]) {
    __m512bh xs[C];
    for (int c = 0; c < C; ++c) xs[c] = (__m512bh)_mm512_loadu_si512(x + c * kLine);
    for (int r = 0; r < R; ++r) {
      const __m512bh v = (__m512bh)_mm512_loadu_si512(w + r * stride);
      for (int c = 0; c < C; ++c) sums[r][c] = (vf)_mm512_dpbf16_ps((__m512)sums[r][c], v, xs[c]);
    }
  }
};
#endif

void linear(const LinearParams& p, int64_t begin, int64_t end) {
  const char* weight = static_cast<const char*>(p.weight);
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) return matvec(Bf16Weights{{weight, p.K * 2}, nullptr}, p, begin, end);
#endif
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    matvec(WideWeights<T>{{weight, p.K * int64_t(sizeof(T))}, nullptr}, p, begin, end);
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
