#include "linear.h"
#include "matvec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int kGroupBytes = kInt4Group / 2;

// A line is two groups. Where a row ends with half a line, the codes' bytes and the x behind it are zero, and the scale
// of the last group stands in for the missing one.
struct GroupScales {
  const float* scale;  // [N, groups]
  int64_t groups;

  const float* first(int64_t n, int64_t line) const { return scale + n * groups + 2 * line; }
  const float* second(int64_t n, int64_t line) const { return first(n, line) + (2 * line + 1 < groups); }
};

struct Int4Weights {
  using X = float;
  static constexpr int64_t kLine = 2 * kInt4Group;
  Rows rows;
  const float* row_scale;
  GroupScales scales;

  template <int R, int C>
  void step(const char* w, int64_t stride, int64_t n, int64_t line, const float* x, vf (&sums)[R][C]) const {
    const float* scale[2] = {scales.first(n, line), scales.second(n, line)};
    for (int i = 0; i < 2 * kGroupBytes; i += kLanes) {
      const float* low_x = x + i / kGroupBytes * kInt4Group + i % kGroupBytes;
      for (int r = 0; r < R; ++r) {
        const float factor = scale[i / kGroupBytes][r * scales.groups];
        const vi bytes = load_bytes(reinterpret_cast<const uint8_t*>(w + r * stride) + i);
        const vf low = int4_values(bytes) * factor, high = int4_values(bytes >> 4) * factor;
        for (int c = 0; c < C; ++c) {
          sums[r][c] += low * load(low_x + c * kLine);
          sums[r][c] += high * load(low_x + c * kLine + kGroupBytes);
        }
      }
    }
  }
};

#if defined(__AVX512BF16__)
// A line is 32 words of four nibbles. A permute looks the bf16 of a nibble up in a table of sixteen, held twice, since
// it reads five bits of an index; each group's dot product is then scaled in fp32.
struct Int4Bf16Weights {
  using X = bf16;
  static constexpr int64_t kLine = 2 * kInt4Group;
  Rows rows;
  const float* row_scale;
  GroupScales scales;
  __m512i table;

  static __m512i make_table() {
    alignas(64) uint16_t values[32];
    for (int i = 0; i < 32; ++i) values[i] = uint16_t(bit_cast<uint32_t>(float((i & 15) - 8)) >> 16);
    return _mm512_load_si512(values);
  }

  PERSIMMON_INLINE __m512bh look_up(__m512i words, __m512i table) {
    return (__m512bh)_mm512_permutexvar_epi16(words, table);
  }

  template <int R, int C>
  void step(const char* w, int64_t stride, int64_t n, int64_t line, const bf16* x, vf (&sums)[R][C]) const {
    const float *first = scales.first(n, line), *second = scales.second(n, line);
    for (int r = 0; r < R; ++r) {
      const __m512i words = _mm512_loadu_si512(w + r * stride);
      const __m512bh v[4] = {look_up(words, table), look_up(_mm512_srli_epi16(words, 4), table),
                             look_up(_mm512_srli_epi16(words, 8), table), look_up(_mm512_srli_epi16(words, 12), table)};
      const __m512 scale = _mm512_mask_broadcastss_ps(_mm512_set1_ps(first[r * scales.groups]), 0xff00,
                                                      _mm_load_ss(second + r * scales.groups));
      for (int c = 0; c < C; ++c) {
        __m512 dots = _mm512_setzero_ps();
        for (int q = 0; q < 4; ++q) {
          dots = _mm512_dpbf16_ps(dots, v[q], (__m512bh)_mm512_loadu_si512(x + c * kLine + q * 32));
        }
        sums[r][c] = (vf)_mm512_fmadd_ps(dots, scale, (__m512)sums[r][c]);
      }
    }
  }
};
#endif

void linear_int4(const LinearParams& p, int64_t begin, int64_t end) {
  const Rows rows{static_cast<const char*>(p.weight), p.K / 2};
  const GroupScales scales{p.scale, p.K / kInt4Group};
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) {
    return matvec(Int4Bf16Weights{rows, nullptr, scales, Int4Bf16Weights::make_table()}, p, begin, end);
  }
#endif
  matvec(Int4Weights{rows, nullptr, scales}, p, begin, end);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
