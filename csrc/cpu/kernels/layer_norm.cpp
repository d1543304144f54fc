#include "layer_norm.h"

#include "statistics.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int64_t kStreamedRowBytes = 16 << 10;  // of a row held on the stack

// y = (x - mean) * rstd * weight + bias. Meanwhile the next row is fetched: `next` [C] and `next_residual` [C] or null.
// kStream: y bypasses the caches, and so does a copy of x in `sum` [C] or null.
template <bool kStream, class T>
PERSIMMON_INLINE void norm_row(const T* x, Statistics s, const T* weight, const T* bias, T* sum, T* y, int64_t C,
                               const T* next, const T* next_residual) {
  for_each_twin(C, [&](int64_t i, int count) {
    const Twin normed = (load_twin_up_to(x + i, count) - s.mean) * s.rstd;
    const Twin result = normed * load_twin_up_to(weight + i, count) + load_twin_up_to(bias + i, count);
    prefetch_twin(next + i);
    if (next_residual != nullptr) prefetch_twin(next_residual + i);
    if constexpr (kStream) {
      if (sum != nullptr) stream_twin(sum + i, x + i);
      stream_twin(y + i, result);
    } else {
      store_twin_up_to(y + i, result, count);
    }
  });
}

template <bool kStream, class T>
PERSIMMON_INLINE void norm_rows(const LayerNormParams& p, int64_t begin, int64_t end) {
  const int64_t C = p.C;
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  alignas(kStreamAlignment) char held[kStream ? kStreamedRowBytes : 1];
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * C;
    T* y = static_cast<T*>(p.y) + row * C;
    const int64_t step = row + 1 < end ? C : 0;
    if (p.residual == nullptr) {
      constexpr T* none = nullptr;
      norm_row<kStream>(x, statistics(x, C, p.eps), weight, bias, none, y, C, x + step, none);
      continue;
    }
    const T* residual = static_cast<const T*>(p.residual) + row * C;
    T* sum = static_cast<T*>(p.sum) + row * C;
    T* rounded = kStream ? reinterpret_cast<T*>(held) : sum;
    const float total = sum_of(C, [&](int64_t i, int count) {
      store_twin_up_to(rounded + i, load_twin_up_to(x + i, count) + load_twin_up_to(residual + i, count), count);
      return load_twin_up_to(rounded + i, count);
    });
    norm_row<kStream>(rounded, statistics(rounded, total, C, p.eps), weight, bias, sum, y, C, x + step,
                      residual + step);
  }
  if (kStream) finish_streams();
}

void layer_norm(const LayerNormParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % kStreamAlignment == 0; };
    const int64_t bytes = p.C * int64_t(sizeof(T));
    const bool whole = p.C % kTwin == 0 && bytes % kStreamAlignment == 0 && aligned(p.y) && aligned(p.sum);
    if (p.bypass_caches && whole && bytes <= kStreamedRowBytes) {
      norm_rows<true, T>(p, begin, end);
    } else {
      norm_rows<false, T>(p, begin, end);
    }
  });
}

// With z = (x - mean) * rstd and g = grad * weight:  dx = rstd * (g - mean(g) - z * mean(g * z)).
void layer_norm_backward(const LayerNormBackwardParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t C = p.C;
    const T* weight = static_cast<const T*>(p.weight);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      float* dweight = p.partials + chunk * 2 * C;
      float* dbias = dweight + C;
      __builtin_memset(dweight, 0, sizeof(float) * 2 * C);
      const int64_t first = chunk * p.rows_per_chunk;
      const int64_t last = first + p.rows_per_chunk < p.rows ? first + p.rows_per_chunk : p.rows;
      for (int64_t row = first; row < last; ++row) {
        const T* x = static_cast<const T*>(p.x) + row * C;
        const T* grad = static_cast<const T*>(p.grad) + row * C;
        T* dx = static_cast<T*>(p.dx) + row * C;
        const Statistics s = statistics(x, C, p.eps);
        vf sum_g{}, sum_gz{};
        for_each_vector(C, [&](int64_t i, int count) {  // the tail's padding lanes have grad 0, so they add nothing
          const vf dy = load_up_to(grad + i, count);
          const vf z = (load_up_to(x + i, count) - s.mean) * s.rstd;
          const vf g = dy * load_up_to(weight + i, count);
          sum_g += g;
          sum_gz += g * z;
          store_up_to(dweight + i, load_up_to(dweight + i, count) + dy * z, count);
          store_up_to(dbias + i, load_up_to(dbias + i, count) + dy, count);
        });
        const float mean_g = reduce_add(sum_g) / float(C), mean_gz = reduce_add(sum_gz) / float(C);
        for_each_vector(C, [&](int64_t i, int count) {
          const vf z = (load_up_to(x + i, count) - s.mean) * s.rstd;
          const vf g = load_up_to(grad + i, count) * load_up_to(weight + i, count);
          store_up_to(dx + i, (g - mean_g - z * mean_gz) * s.rstd, count);
        });
      }
    }
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
