// Transposes and transposing sums of kLanes vectors, in log2(kLanes) steps of pairwise shuffles. Only for files
// compiled per instruction set.
#pragma once

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// One step exchanges the lanes of `a` that have bit `width` set with the lanes of `b` that have it clear.
template <int width>
PERSIMMON_INLINE void exchange(vf& a, vf& b) {
  vi low, high;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i & width ? kLanes + i - width : i;
    high[i] = i & width ? kLanes + i : i + width;
  }
  const vf a_next = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = a_next;
}

// v[i][j] becomes v[j][i].
template <int width = kLanes / 2>
PERSIMMON_INLINE void transpose(vf (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & width) == 0) exchange<width>(v[i], v[i + width]);
  }
  if constexpr (width > 1) transpose<width / 2>(v);
}

// Lane i of the result is the sum of v[i]'s lanes. `v` is used up.
template <int width = kLanes / 2>
PERSIMMON_INLINE vf reduce_add_each(vf (&v)[kLanes]) {
#pragma GCC unroll 8
  for (int i = 0; i < width; ++i) {
    exchange<width>(v[i], v[i + width]);
    v[i] += v[i + width];
  }
  if constexpr (width > 1) return reduce_add_each<width / 2>(v);
  return v[0];
}

// The largest lane, in every lane; a NaN is passed over where vmax passes it over.
template <int width = kLanes / 2>
PERSIMMON_INLINE vf spread_max(vf v) {
  vi other;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) other[i] = i ^ width;
  v = vmax(v, __builtin_shuffle(v, other));
  if constexpr (width > 1) return spread_max<width / 2>(v);
  return v;
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
