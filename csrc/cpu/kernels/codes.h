// Quantised weights become fp32 lanes. Only for files compiled per instruction set (see kernel.h).
#pragma once

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// kLanes bytes as integers, a byte a lane. With intrinsics: GCC takes a conversion of byte vectors apart, at a tenth of
// the speed.
PERSIMMON_INLINE vi load_bytes(const int8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  vi v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i];
  return v;
#endif
}
PERSIMMON_INLINE vi load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  vi v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i];
  return v;
#endif
}

PERSIMMON_INLINE vf load(const int8_t* p) { return __builtin_convertvector(load_bytes(p), vf); }

PERSIMMON_INLINE vf load_up_to(const int8_t* p, int count) {
  if (count == kLanes) return load(p);
  int8_t buffer[kLanes] = {};
  __builtin_memcpy(buffer, p, count);
  return load(buffer);
}

// What a lane's low four bits stand for.
PERSIMMON_INLINE vf int4_values(vi codes) {
#if defined(__AVX512F__)
  const vf table = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  return (vf)_mm512_permutexvar_ps((__m512i)codes, (__m512)table);  // reads four bits of each index
#else
  return __builtin_convertvector((codes & 15) - 8, vf);
#endif
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
