// Mean and reciprocal standard deviation of a row, in fp32 and two passes. Only for files compiled per instruction set.
#pragma once

#include "twin.h"

namespace persimmon::cpu::PERSIMMON_ISA {

struct Statistics {
  float mean, rstd;
};

// Sum of term(offset, count), a Twin, over [0, n), in several chains of additions that don't wait for each other. What
// a tail does not fill must be zero.
template <class Term>
PERSIMMON_INLINE float sum_of(int64_t n, Term&& term) {
  Twin even{}, odd{};
  int64_t i = 0;
  for (; i + 2 * kTwin <= n; i += 2 * kTwin) {
    even = even + term(i, kTwin);
    odd = odd + term(i + kTwin, kTwin);
  }
  for (; i < n; i += kTwin) even = even + term(i, n - i < kTwin ? int(n - i) : kTwin);
  return reduce_add((even.a + even.b) + (odd.a + odd.b));
}

// v, of finite numbers, with zeros behind its first `count` elements, in the order of a Twin of T.
template <class T>
PERSIMMON_INLINE Twin keep_first(Twin v, int count) {
  if (count == kTwin) return v;
  T ones[kTwin];
  store_twin(ones, {broadcast(1), broadcast(1)});
  return v * load_twin_up_to(ones, count);
}

// Of a row whose sum is known.
template <class T>
PERSIMMON_INLINE Statistics statistics(const T* x, float total, int64_t C, float eps) {
  const float mean = total / float(C);
  const float squares = sum_of(C, [&](int64_t i, int count) {
    const Twin d = keep_first<T>(load_twin_up_to(x + i, count) - mean, count);
    return d * d;
  });
  return {mean, 1.f / __builtin_sqrtf(squares / float(C) + eps)};
}

template <class T>
PERSIMMON_INLINE Statistics statistics(const T* x, int64_t C, float eps) {
  const float total = sum_of(C, [&](int64_t i, int count) { return load_twin_up_to(x + i, count); });
  return statistics(x, total, C, eps);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
