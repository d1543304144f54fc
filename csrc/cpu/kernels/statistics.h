// Mean and reciprocal standard deviation of a row, in fp32 and two passes. Only for files compiled per instruction set.
#pragma once

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

struct Statistics {
  float mean, rstd;
};

template <class T>
PERSIMMON_INLINE Statistics statistics(const T* x, int64_t C, float eps) {
  vf total{};
  for_each_vector(C, [&](int64_t i, int count) { total += load_up_to(x + i, count); });
  const float mean = reduce_add(total) / float(C);
  vf squares{};
  for_each_vector(C, [&](int64_t i, int count) {
    vf d = load_up_to(x + i, count) - mean;
    if (count < kLanes) {
      for (int j = count; j < kLanes; ++j) d[j] = 0;  // the padding lanes of a tail hold no element
    }
    squares += d * d;
  });
  return {mean, 1.f / __builtin_sqrtf(reduce_add(squares) / float(C) + eps)};
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
