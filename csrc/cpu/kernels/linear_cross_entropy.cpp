#include "linear_cross_entropy.h"

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// What is subtracted before exp: an infinite maximum would turn the rest of its row into NaN.
PERSIMMON_INLINE float shift_of(float max) { return __builtin_isinf(max) ? 0.f : max; }

void cross_entropy(const CrossEntropyParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = begin; row < end; ++row) {
      const T* logits = static_cast<const T*>(p.logits) + row * p.columns;
      vf top = broadcast(p.max[row]);
      for_each_vector(p.columns, [&](int64_t i, int count) {
        vf v = load_up_to(logits + i, count);
        for (int j = count; j < kLanes; ++j) v[j] = top[j];  // the padding lanes of a tail hold no logit
        top = vmax(v, top);
      });
      const float max = reduce_max(top), shift = shift_of(max);
      vf sum{};
      for_each_vector(p.columns, [&](int64_t i, int count) {
        vf e = vexp(load_up_to(logits + i, count) - shift);
        for (int j = count; j < kLanes; ++j) e[j] = 0;
        sum += e;
      });
      const float before = p.sum[row];
      const float scaled = before == 0 ? 0 : before * vexp(broadcast(shift_of(p.max[row]) - shift))[0];
      p.sum[row] = scaled + reduce_add(sum);
      p.max[row] = max;
      const int64_t column = p.labels[row] - p.first;
      if (column >= 0 && column < p.columns) p.target[row] = load1(logits + column);
    }
  });
}

void cross_entropy_backward(const CrossEntropyBackwardParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = begin; row < end; ++row) {
      T* logits = static_cast<T*>(p.logits) + row * p.columns;
      if (p.labels[row] == p.ignore_index) {
        __builtin_memset(logits, 0, sizeof(T) * p.columns);
        continue;
      }
      const float lse = p.lse[row], dloss = p.dloss[row];
      const int64_t column = p.labels[row] - p.first;
      const bool here = column >= 0 && column < p.columns;
      const float label_logit = here ? load1(logits + column) : 0.f;
      for_each_vector(p.columns, [&](int64_t i, int count) {
        store_up_to(logits + i, vexp(load_up_to(logits + i, count) - lse) * dloss, count);
      });
      if (here) store1(logits + column, (vexp(broadcast(label_logit - lse))[0] - 1.f) * dloss);
    }
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
