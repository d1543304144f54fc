// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), a vector of counters at a time.
// Only for files compiled per instruction set (see kernel.h).
#pragma once

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

typedef uint64_t vq __attribute__((vector_size(kLanes * 4)));

// The low half of every 64-bit lane times m.
PERSIMMON_INLINE vq multiply_low(vq x, uint32_t m) {
#if defined(__AVX512F__)
  return (vq)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  return (vq)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(m));
#else
  return (x & 0xffffffffu) * m;
#endif
}

// x * m in 64 bits, as its high and low halves.
PERSIMMON_INLINE void multiply_wide(vu x, uint32_t m, vu& high, vu& low) {
  const vq pairs = bit_cast<vq>(x);
  const vu even = bit_cast<vu>(multiply_low(pairs, m)), odd = bit_cast<vu>(multiply_low(pairs >> 32, m));
#if defined(__AVX512F__)  // masked shuffles inside 128 bits: GCC would take slower ones across all lanes
  high = (vu)_mm512_mask_shuffle_epi32((__m512i)odd, 0x5555, (__m512i)even, _MM_PERM_DDBB);
  low = (vu)_mm512_mask_shuffle_epi32((__m512i)even, 0xAAAA, (__m512i)odd, _MM_PERM_CCAA);
#else
  vu highs, lows;
  for (uint32_t i = 0; i < kLanes; ++i) {
    highs[i] = i % 2 == 0 ? i + 1 : kLanes + i;
    lows[i] = i % 2 == 0 ? i : kLanes + i - 1;
  }
  high = __builtin_shuffle(even, odd, highs);
  low = __builtin_shuffle(even, odd, lows);
#endif
}

// The first output word for key = seed and counter = (first + lane, low half of counter, high half, 0).
PERSIMMON_INLINE vu philox(uint64_t seed, uint64_t counter, uint32_t first) {
  vu c0, c1 = vu{} + uint32_t(counter), c2 = vu{} + uint32_t(counter >> 32), c3{};
  for (int i = 0; i < kLanes; ++i) c0[i] = first + uint32_t(i);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    vu a_high, a_low, b_high, b_low;
    multiply_wide(c0, 0xD2511F53u, a_high, a_low);
    multiply_wide(c2, 0xCD9E8D57u, b_high, b_low);
    c0 = b_high ^ c1 ^ k0;
    c1 = b_low;
    c2 = a_high ^ c3 ^ k1;
    c3 = a_low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
