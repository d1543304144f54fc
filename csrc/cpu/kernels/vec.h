// A vector of fp32 lanes in the compiler's vector extension, so that one source serves every instruction set, with
// loads and stores that convert from and to bf16 and fp16. Only for files compiled per instruction set (see kernel.h).
//
// a * b + c becomes one fused instruction where the instruction set has it (GCC contracts by default).
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernel.h"

namespace persimmon::cpu::PERSIMMON_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#else
inline constexpr int kLanes = 8;  // portable: the compiler splits it into two SSE registers
#endif

typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vh __attribute__((vector_size(kLanes * 2)));

#define PERSIMMON_INLINE static inline __attribute__((always_inline))

template <class To, class From>
PERSIMMON_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

PERSIMMON_INLINE vf broadcast(float x) { return x - vf{}; }
PERSIMMON_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
PERSIMMON_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }

// ---- conversions -----------------------------------------------------------------------------------------------

PERSIMMON_INLINE vf from_bf16(vh h) {
#if defined(__AVX512F__)
  return bit_cast<vf>((vu)_mm512_cvtepu16_epi32((__m256i)h) << 16);  // GCC 12 splits __builtin_convertvector in halves
#else
  return bit_cast<vf>(__builtin_convertvector(h, vu) << 16);
#endif
}

// bf16 in the upper halves, what was rounded in the lower ones: to nearest even; a NaN stays a NaN.
PERSIMMON_INLINE vu rounded_to_bf16(vf x) {
  const vu u = bit_cast<vu>(x);
  return x == x ? u + 0x7fff + ((u >> 16) & 1) : u | 0x400000;
}

PERSIMMON_INLINE vh to_bf16(vf x) {
  const vu bits = rounded_to_bf16(x) >> 16;
#if defined(__AVX512F__)
  return (vh)_mm512_cvtepi32_epi16((__m512i)bits);
#else
  return __builtin_convertvector(bits, vh);
#endif
}

PERSIMMON_INLINE vf from_f16(vh h) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return (vf)_mm256_cvtph_ps((__m128i)h);
#else
  const vu w = __builtin_convertvector(h, vu);
  const vu sign = (w & 0x8000) << 16;
  const vu magnitude = w & 0x7fff;
  // Normal numbers: move exponent and mantissa into place, then rescale; this also maps inf and NaN to themselves.
  const vf normal = bit_cast<vf>((magnitude << 13) + (0xe0u << 23)) * 0x1p-112f;
  const vf subnormal = __builtin_convertvector(bit_cast<vi>(magnitude), vf) * 0x1p-24f;
  return bit_cast<vf>(bit_cast<vu>(magnitude < 0x400 ? subnormal : normal) | sign);
#endif
}

PERSIMMON_INLINE vh to_f16(vf x) {  // round to nearest even
#if defined(__AVX512F__)
  // GCC 12 warns of what its _mm512_cvtps_ph merges with; the mask is gone in the instruction.
  return (vh)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (vh)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#else
  const vu u = bit_cast<vu>(x);
  const vu sign = (u >> 16) & 0x8000;
  const vu magnitude = u & 0x7fffffff;
  // Subnormal results: adding 0.5 aligns the 10 mantissa bits at the bottom of the word, rounded by the addition.
  const vu subnormal = bit_cast<vu>(bit_cast<vf>(magnitude) + 0.5f) - (126u << 23);
  const vu normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const vu finite = magnitude < (113u << 23) ? subnormal : normal;
  const vu overflow = magnitude > 0x7f800000 ? vu{} + 0x7e00 : vu{} + 0x7c00;
  return __builtin_convertvector((magnitude >= (143u << 23) ? overflow : finite) | sign, vh);
#endif
}

// ---- loads and stores --------------------------------------------------------------------------------------------

PERSIMMON_INLINE vf load(const float* p) {
  vf v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
PERSIMMON_INLINE vf load(const bf16* p) {
  vh v;
  __builtin_memcpy(&v, p, sizeof(v));
  return from_bf16(v);
}
PERSIMMON_INLINE vf load(const f16* p) {
  vh v;
  __builtin_memcpy(&v, p, sizeof(v));
  return from_f16(v);
}

PERSIMMON_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof(v)); }
PERSIMMON_INLINE void store(bf16* p, vf v) {
  const vh h = to_bf16(v);
  __builtin_memcpy(p, &h, sizeof(h));
}
PERSIMMON_INLINE void store(f16* p, vf v) {
  const vh h = to_f16(v);
  __builtin_memcpy(p, &h, sizeof(h));
}

// The first n < kLanes elements; the other lanes are zero.
template <class T>
PERSIMMON_INLINE vf load_n(const T* p, int n) {
  T buffer[kLanes] = {};
  __builtin_memcpy(buffer, p, sizeof(T) * n);
  return load(buffer);
}
template <class T>
PERSIMMON_INLINE void store_n(T* p, vf v, int n) {
  T buffer[kLanes];
  store(buffer, v);
  __builtin_memcpy(p, buffer, sizeof(T) * n);
}

template <class T>
PERSIMMON_INLINE float load1(const T* p) {
  return load_n(p, 1)[0];
}
template <class T>
PERSIMMON_INLINE void store1(T* p, float x) {
  store_n(p, broadcast(x), 1);
}

// Calls body(offset, count) over [0, n) in steps of kLanes; count is kLanes but for the last step.
template <class Body>
PERSIMMON_INLINE void for_each_vector(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, int(n - i));
}
// Loads or stores `count` elements, the whole vector in one instruction where count is kLanes.
template <class T>
PERSIMMON_INLINE vf load_up_to(const T* p, int count) {
  return count == kLanes ? load(p) : load_n(p, count);
}
template <class T>
PERSIMMON_INLINE void store_up_to(T* p, vf v, int count) {
  count == kLanes ? store(p, v) : store_n(p, v, count);
}

// ---- reductions and functions ------------------------------------------------------------------------------------

PERSIMMON_INLINE float reduce_add(vf v) {  // a fixed tree: halves, quarters, …
#pragma GCC unroll 4
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return v[0];
}

PERSIMMON_INLINE float reduce_max(vf v) {
  float m = v[0];
  for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// exp(x), relative error below 2e-7; -inf and anything below -87.3 give 0, above 88.7 inf, NaN stays NaN.
PERSIMMON_INLINE vf vexp(vf x) {
  const vf clamped = vmin(vmax(x, broadcast(-104.f)), broadcast(89.f));
  const vf t = clamped * 1.44269504088896341f;
  const vf n = (t + 0x1.8p23f) - 0x1.8p23f;  // nearest integer, by the rounding of the addition
  vf r = clamped - n * 0.693359375f;         // ln 2 in two parts
  r = r + n * 2.12194440e-4f;
  vf p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  // 2^n in two factors, so that neither overflows the exponent field at the ends of the range.
  const vi whole = __builtin_convertvector(n, vi);
  const vi half = whole >> 1;
  const vf low = bit_cast<vf>((half + 127) << 23);
  const vf high = bit_cast<vf>((whole - half + 127) << 23);
  const vf y = p * low * high;
  return x != x ? x : (x < -87.33654f ? vf{} : y);
}

// ---- fast stores -------------------------------------------------------------------------------------------------

// store_up_to by the instruction for bf16 where there is one: it rounds alike, but flushes subnormal numbers to zero.
template <class T>
PERSIMMON_INLINE void store_flushing(T* p, vf v, int count) {
  store_up_to(p, v, count);
}
#if defined(__AVX512BF16__)
PERSIMMON_INLINE void store_flushing(bf16* p, vf v, int count) {
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  count == kLanes ? __builtin_memcpy(p, &h, sizeof(h)) : __builtin_memcpy(p, &h, sizeof(bf16) * count);
}
#endif

// ---- dispatch ----------------------------------------------------------------------------------------------------

// Calls fn with a value of the element type that `dtype` names.
template <class Fn>
PERSIMMON_INLINE void with_type(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::f32:
      return fn(float{});
    case DType::bf16:
      return fn(bf16{});
    case DType::f16:
      return fn(f16{});
  }
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
