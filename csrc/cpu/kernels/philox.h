// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), many counters at a time.
// Only for files compiled per instruction set (see kernel.h).
#pragma once

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int kPhiloxLanes = 64;

// The first output word for key = seed and counter = (first + lane, low half of counter, high half, 0).
PERSIMMON_INLINE void philox(uint64_t seed, uint64_t counter, uint32_t first, uint32_t (&word)[kPhiloxLanes]) {
  uint32_t c0[kPhiloxLanes], c1[kPhiloxLanes], c2[kPhiloxLanes], c3[kPhiloxLanes];
  for (int i = 0; i < kPhiloxLanes; ++i) {
    c0[i] = first + uint32_t(i);
    c1[i] = uint32_t(counter);
    c2[i] = uint32_t(counter >> 32);
    c3[i] = 0;
  }
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kPhiloxLanes; ++i) {
      const uint64_t a = uint64_t(0xD2511F53u) * c0[i], b = uint64_t(0xCD9E8D57u) * c2[i];
      c0[i] = uint32_t(b >> 32) ^ c1[i] ^ k0;
      c1[i] = uint32_t(b);
      c2[i] = uint32_t(a >> 32) ^ c3[i] ^ k1;
      c3[i] = uint32_t(a);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < kPhiloxLanes; ++i) word[i] = c0[i];
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
