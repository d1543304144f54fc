// Shared by attention and its gradient: which keys a query sees, and blocks of rows converted to fp32. Only for files
// compiled per instruction set.
#pragma once

#include "attention.h"
#include "block_product.h"
#include "codes.h"
#include "pairs.h"
#include "shuffle.h"

namespace persimmon::cpu::PERSIMMON_ISA {

PERSIMMON_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
PERSIMMON_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// What the queries of one sequence see: query t sees keys [begin, end(t)).
struct Visible {
  int64_t begin, limit, offset;

  PERSIMMON_INLINE Visible of(const AttentionShape& s, int64_t b) {
    const int64_t start = s.start != nullptr ? s.start[b] : 0, length = s.length != nullptr ? s.length[b] : s.S;
    const int64_t offset = s.offset != nullptr ? s.offset[b] : s.S - s.T;
    return {min_of(max_of(start, 0), s.S), min_of(max_of(length, 0), s.S),
            min_of(max_of(offset, -s.T - 1), s.S)};  // beyond these nothing changes, and no sum overflows
  }
  // Nothing where end(t) <= begin.
  int64_t end(int64_t t) const { return min_of(offset + t + 1, limit); }
};

// 0 to kLanes - 1, to compare with a count of visible keys.
PERSIMMON_INLINE vf lane_numbers() {
  vf lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = float(i);
  return lane;
}

template <class T>
PERSIMMON_INLINE const T* row_of(const Rows& rows, int64_t b, int64_t h, int64_t row) {
  return static_cast<const T*>(rows.data) + b * rows.batch_stride + h * rows.head_stride + row * rows.row_stride;
}

// dst [count, padded(D)] = fp32 of `count` rows of D elements, zeros beyond D.
template <class T>
PERSIMMON_INLINE void load_rows(const T* src, int64_t row_stride, int64_t count, int64_t D, float* dst) {
  for (int64_t r = 0; r < count; ++r) {
    const T* x = src + r * row_stride;
    float* y = dst + r * padded(D);
    for_each_vector(D, [&](int64_t i, int n) { store(y + i, load_up_to(x + i, n)); });
    for (int64_t i = (D + kLanes - 1) / kLanes * kLanes; i < padded(D); i += kLanes) store(y + i, vf{});
  }
}

// dst [D, kKeyBlock] = fp32 of `count` rows of D elements (pairs stay pairs), transposed; columns beyond `count` are
// zero. Rows of dst beyond D, up to padded(D), may be written.
template <class T>
PERSIMMON_INLINE void load_transposed(const T* src, int64_t row_stride, int64_t count, int64_t D, float* dst) {
  for (int64_t r = 0; r < kKeyBlock; r += kLanes) {
    const int64_t present = min_of(max_of(count - r, 0), kLanes);
    for_each_vector(D, [&](int64_t i, int n) {
      const auto row = [&](int64_t j) { return load_bits(src + (r + j) * row_stride + i, n); };
      vf block[kLanes];
      if (present == kLanes) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) block[j] = row(j);
      } else {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) block[j] = j < present ? row(j) : vf{};
      }
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store(dst + (i + j) * kKeyBlock + r, block[j]);
    });
  }
}

// exp(x) for x <= 0, with the relative error of vexp; -inf gives 0, NaN stays NaN.
PERSIMMON_INLINE vf exp_nonpositive(vf x) {
#if defined(__AVX512F__)
  const vf clamped = (vf)_mm512_max_ps((__m512)broadcast(-104.f), (__m512)x);  // of a NaN, the second operand
  const vf n = (vf)_mm512_roundscale_ps((__m512)(clamped * 1.44269504088896341f), _MM_FROUND_TO_NEAREST_INT);
  vf r = clamped - n * 0.693359375f;  // ln 2 in two parts
  r = r + n * 2.12194440e-4f;
  vf p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.f);
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return vexp(x);
#endif
}

PERSIMMON_INLINE void fill_zero(float* x, int64_t n) { __builtin_memset(x, 0, sizeof(float) * n); }

// c [rows, kKeyBlock] = a b^T, `inner` elements or pairs long, for the transposed block b.
template <class E>
PERSIMMON_INLINE void score_product(const BlockA<E>& a, const E* b_transposed, int64_t rows, int64_t inner, float* c) {
  fill_zero(c, rows * kKeyBlock);
  block_product(a, BlockB{b_transposed, kKeyBlock}, c, kKeyBlock, rows, kKeyBlock, inner);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
