// Mean and reciprocal standard deviation of a row, in fp32 and two passes. Only for files compiled per instruction set.
#pragma once

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

struct Statistics {
  float mean, rstd;
};

// Sum of term(offset, count) over [0, n), in several chains of additions that don't wait for each other. The lanes that
// a tail does not fill must be zero.
template <class Term>
PERSIMMON_INLINE float sum_of(int64_t n, Term&& term) {
  constexpr int kChains = 4;
  vf sums[kChains]{};
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) sums[j] += term(i + j * kLanes, kLanes);
  }
  for (; i < n; i += kLanes) sums[0] += term(i, n - i < kLanes ? int(n - i) : kLanes);
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The first n lanes, zeros beyond.
PERSIMMON_INLINE vf keep_lanes(vf v, int n) {
  for (int j = n; j < kLanes; ++j) v[j] = 0;
  return v;
}

// Of a row whose sum is known.
template <class T>
PERSIMMON_INLINE Statistics statistics(const T* x, float total, int64_t C, float eps) {
  const float mean = total / float(C);
  const float squares = sum_of(C, [&](int64_t i, int count) {
    const vf d = load_up_to(x + i, count) - mean;
    return count == kLanes ? d * d : keep_lanes(d * d, count);
  });
  return {mean, 1.f / __builtin_sqrtf(squares / float(C) + eps)};
}

template <class T>
PERSIMMON_INLINE Statistics statistics(const T* x, int64_t C, float eps) {
  const float total = sum_of(C, [&](int64_t i, int count) { return load_up_to(x + i, count); });
  return statistics(x, total, C, eps);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
