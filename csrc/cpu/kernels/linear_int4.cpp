#include "linear.h"
#include "matvec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int kGroupBytes = kInt4Group / 2;

struct Int4Weights {
  using X = float;
  const uint8_t* packed;  // [N, K/2]
  const float* scale;     // [N, K/64]
  int64_t K;

  template <int R, int M>
  void dot(int64_t n, const float* x, float (&out)[R][M]) const {
    const int64_t groups = K / kInt4Group;
    vf sums[R][M] = {};
    for (int64_t g = 0; g < groups; ++g) {
      for (int i = 0; i < kGroupBytes; i += kLanes) {
        const float* low = x + g * kInt4Group + i;
        const float* high = low + kGroupBytes;
        for (int r = 0; r < R; ++r) {
          const int64_t group = (n + r) * groups + g;
          const vi bytes = load_bytes(packed + group * kGroupBytes + i);
          const vf a = int4_values(bytes) * scale[group], b = int4_values(bytes >> 4) * scale[group];
          for (int m = 0; m < M; ++m) {
            sums[r][m] += a * load(low + m * K);
            sums[r][m] += b * load(high + m * K);
          }
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int m = 0; m < M; ++m) out[r][m] = reduce_add(sums[r][m]);
    }
  }
};

#if defined(__AVX512BF16__)
// A code's bf16 comes from a table of sixteen by one permute; each group's dot product is then scaled in fp32.
struct Int4Bf16Weights {
  using X = bf16;
  const uint8_t* packed;  // [N, K/2]
  const float* scale;     // [N, K/64]
  int64_t K;

  template <int R, int M>
  void dot(int64_t n, const bf16* x, float (&out)[R][M]) const {
    alignas(64) uint16_t values[32];
    for (int i = 0; i < 32; ++i) values[i] = uint16_t(bit_cast<uint32_t>(float((i & 15) - 8)) >> 16);
    const __m512i table = _mm512_load_si512(values), mask = _mm512_set1_epi16(15);
    const int64_t groups = K / kInt4Group;
    __m512 sums[R][M];
    for (auto& row : sums) {
      for (auto& sum : row) sum = _mm512_setzero_ps();
    }
    for (int64_t g = 0; g < groups; ++g) {
      __m512bh low_x[M], high_x[M];
      for (int m = 0; m < M; ++m) {
        low_x[m] = (__m512bh)_mm512_loadu_si512(x + m * K + g * kInt4Group);
        high_x[m] = (__m512bh)_mm512_loadu_si512(x + m * K + g * kInt4Group + kGroupBytes);
      }
      for (int r = 0; r < R; ++r) {
        const int64_t group = (n + r) * groups + g;
        const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(packed + group * kGroupBytes)));
        const __m512bh low = (__m512bh)_mm512_permutexvar_epi16(_mm512_and_si512(bytes, mask), table);
        const __m512bh high = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table);
        for (int m = 0; m < M; ++m) {
          __m512 dots = _mm512_dpbf16_ps(_mm512_setzero_ps(), low, low_x[m]);
          dots = _mm512_dpbf16_ps(dots, high, high_x[m]);
          sums[r][m] = _mm512_fmadd_ps(dots, _mm512_set1_ps(scale[group]), sums[r][m]);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int m = 0; m < M; ++m) out[r][m] = _mm512_reduce_add_ps(sums[r][m]);
    }
  }
};
#endif

void linear_int4(const LinearParams& p, int64_t begin, int64_t end) {
  const uint8_t* packed = static_cast<const uint8_t*>(p.weight);
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) return matvec(Int4Bf16Weights{packed, p.scale, p.K}, p, begin, end);
#endif
  matvec(Int4Weights{packed, p.scale, p.K}, p, begin, end);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
