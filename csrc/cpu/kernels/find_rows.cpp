#include "sparse_linear.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// The bits of kLanes (or n) elements without their signs: zero for zeros of both signs, and for nothing else.
PERSIMMON_INLINE vi magnitude_bits(const float* p, int n) { return bit_cast<vi>(load_up_to(p, n)) & 0x7fffffff; }
PERSIMMON_INLINE vi magnitude_bits(const bf16* p, int n) { return bit_cast<vi>(load_up_to(p, n)) & 0x7fffffff; }
PERSIMMON_INLINE vi magnitude_bits(const f16* p, int n) {
  return magnitude_bits(reinterpret_cast<const bf16*>(p), n);  // any 16 bits do
}

// Appends first + i to the list for every lane i that is not zero; returns how many. Without a branch: zeros come in no
// order that could be predicted. Writes kLanes entries.
PERSIMMON_INLINE int64_t append_nonzero(int32_t* list, vi bits, int32_t first) {
#if defined(__AVX512F__)
  const __mmask16 mask = _mm512_test_epi32_mask((__m512i)bits, (__m512i)bits);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_storeu_si512(list, _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(lane, _mm512_set1_epi32(first))));
  return __builtin_popcount(mask);
#else
  int64_t count = 0;
  for (int i = 0; i < kLanes; ++i) {
    list[count] = first + i;
    count += bits[i] != 0;
  }
  return count;
#endif
}

void find_rows(const FindRowsParams& p, int64_t, int64_t) {
  static_assert(kLanes <= kListPadding);
  with_type(p.dtype, [&](auto tag) {
    const auto* x = static_cast<const decltype(tag)*>(p.x);
    int64_t count = 0;
    for_each_vector(p.F, [&](int64_t j, int n) {
      vi bits{};
      for (int64_t m = 0; m < p.M; ++m) bits |= magnitude_bits(x + m * p.F + j, n);
      count += append_nonzero(p.rows + count, bits, int32_t(j));
    });
    *p.count = count;
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
