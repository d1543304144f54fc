// Two vectors of elements at a time. Of bf16 they are the even and the odd elements: two bit operations split a whole
// register of them, half of what widening each half takes. Where all operands and the result share it, the order
// doesn't matter. Only for files compiled per instruction set (see kernel.h).
#pragma once

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int kTwin = 2 * kLanes;  // elements

struct Twin {
  vf a, b;
};

PERSIMMON_INLINE Twin operator+(Twin u, Twin v) { return {u.a + v.a, u.b + v.b}; }
PERSIMMON_INLINE Twin operator-(Twin u, Twin v) { return {u.a - v.a, u.b - v.b}; }
PERSIMMON_INLINE Twin operator-(Twin u, float x) { return {u.a - x, u.b - x}; }
PERSIMMON_INLINE Twin operator*(Twin u, float x) { return {u.a * x, u.b * x}; }
PERSIMMON_INLINE Twin operator*(Twin u, Twin v) { return {u.a * v.a, u.b * v.b}; }

template <class T>
PERSIMMON_INLINE Twin load_twin(const T* p) {
  return {load(p), load(p + kLanes)};
}
PERSIMMON_INLINE Twin load_twin(const bf16* p) {
  vu pairs;
  __builtin_memcpy(&pairs, p, sizeof(pairs));
  return {bit_cast<vf>(pairs << 16), bit_cast<vf>(pairs & 0xffff0000)};
}

// Subnormal bf16 may be flushed to zero.
template <class T>
PERSIMMON_INLINE void store_twin(T* p, Twin v) {
  store(p, v.a);
  store(p + kLanes, v.b);
}
#if defined(__AVX512BF16__)
PERSIMMON_INLINE void store_twin(bf16* p, Twin v) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)v.b, (__m512)v.a);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves));
}
#else
PERSIMMON_INLINE void store_twin(bf16* p, Twin v) {
  const vu pairs = rounded_to_bf16(v.a) >> 16 | (rounded_to_bf16(v.b) & 0xffff0000);
  __builtin_memcpy(p, &pairs, sizeof(pairs));
}
#endif

// The first `count` elements; zeros for the others.
template <class T>
PERSIMMON_INLINE Twin load_twin_up_to(const T* p, int count) {
  if (count == kTwin) return load_twin(p);
  T buffer[kTwin] = {};
  __builtin_memcpy(buffer, p, sizeof(T) * count);
  return load_twin(buffer);
}
template <class T>
PERSIMMON_INLINE void store_twin_up_to(T* p, Twin v, int count) {
  if (count == kTwin) return store_twin(p, v);
  T buffer[kTwin];
  store_twin(buffer, v);
  __builtin_memcpy(p, buffer, sizeof(T) * count);
}

// Calls body(offset, count) over [0, n) in steps of kTwin; count is kTwin but for the last step.
template <class Body>
PERSIMMON_INLINE void for_each_twin(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kTwin <= n; i += kTwin) body(i, kTwin);
  if (i < n) body(i, int(n - i));
}

// Past the caches, in whole registers: `to` is aligned to kStreamAlignment.
inline constexpr int64_t kStreamAlignment = 64;
template <class T>
PERSIMMON_INLINE void stream_twin(T* to, const T* from) {
  for (int i = 0; i < kTwin; i += int(sizeof(vf) / sizeof(T))) {
    vf v;
    __builtin_memcpy(&v, from + i, sizeof(v));
#if defined(__AVX512F__)
    _mm512_stream_ps(reinterpret_cast<float*>(to + i), (__m512)v);
#elif defined(__AVX2__)
    _mm256_stream_ps(reinterpret_cast<float*>(to + i), (__m256)v);
#else
    __builtin_memcpy(to + i, &v, sizeof(v));
#endif
  }
}
template <class T>
PERSIMMON_INLINE void stream_twin(T* to, Twin v) {
  alignas(kStreamAlignment) T from[kTwin];
  store_twin(from, v);
  stream_twin(to, from);
}
// Before another thread may read what was streamed.
PERSIMMON_INLINE void finish_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Asks for the lines that a twin lies in.
template <class T>
PERSIMMON_INLINE void prefetch_twin(const T* p) {
  for (int i = 0; i < kTwin; i += 64 / int(sizeof(T))) __builtin_prefetch(p + i);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
