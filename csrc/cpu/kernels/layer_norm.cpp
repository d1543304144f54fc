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

// Whether rows of C elements from `y` on can be stored past the caches.
template <class T>
PERSIMMON_INLINE bool can_stream(const void* y, int64_t C) {
  const int64_t bytes = C * int64_t(sizeof(T));
  return C % kTwin == 0 && bytes % kStreamAlignment == 0 && reinterpret_cast<uintptr_t>(y) % kStreamAlignment == 0;
}

void layer_norm(const LayerNormParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool fits = p.C * int64_t(sizeof(T)) <= kStreamedRowBytes;
    if (p.bypass_caches && fits && can_stream<T>(p.y, p.C) && can_stream<T>(p.sum, p.C)) {
      norm_rows<true, T>(p, begin, end);
    } else {
      norm_rows<false, T>(p, begin, end);
    }
  });
}

// Rows whose weight and bias gradients are added up before they are written: these sums don't fit into the first cache.
inline constexpr int kGradientRows = 4;

// What the gradients of a row need, with z = (x - mean) * rstd and g = grad * weight.
struct RowMoments {
  Statistics statistics;
  float mean_g, mean_gz;
};

// Adds rows [x, x + kRows * C) to dweight and dbias, and fills in their moments.
template <int kRows, class T>
PERSIMMON_INLINE void add_rows(const T* x, const T* grad, const T* weight, int64_t C, float eps, float* dweight,
                               float* dbias, RowMoments* moments) {
  for (int r = 0; r < kRows; ++r) moments[r].statistics = statistics(x + r * C, C, eps);
  vf sum_g[kRows]{}, sum_gz[kRows]{};
  for_each_vector(C, [&](int64_t i, int count) {  // the tail's padding lanes have grad 0, so they add nothing
    const vf w = load_up_to(weight + i, count);
    vf dw = load_up_to(dweight + i, count), db = load_up_to(dbias + i, count);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Statistics s = moments[r].statistics;
      const vf dy = load_up_to(grad + r * C + i, count);
      const vf z = (load_up_to(x + r * C + i, count) - s.mean) * s.rstd;
      const vf g = dy * w;
      sum_g[r] += g;
      sum_gz[r] += g * z;
      dw += dy * z;
      db += dy;
    }
    store_up_to(dweight + i, dw, count);
    store_up_to(dbias + i, db, count);
  });
  for (int r = 0; r < kRows; ++r) {
    moments[r].mean_g = reduce_add(sum_g[r]) / float(C);
    moments[r].mean_gz = reduce_add(sum_gz[r]) / float(C);
  }
}

// dx = rstd * (g - mean(g) - z * mean(g * z)). Meanwhile the rows `step` elements on are fetched.
template <bool kStream, class T>
PERSIMMON_INLINE void row_gradient(const T* x, const T* grad, const T* weight, const RowMoments& m, T* dx, int64_t C,
                                   int64_t step) {
  const Statistics s = m.statistics;
  for_each_twin(C, [&](int64_t i, int count) {
    const Twin z = (load_twin_up_to(x + i, count) - s.mean) * s.rstd;
    const Twin g = load_twin_up_to(grad + i, count) * load_twin_up_to(weight + i, count);
    const Twin result = (g - m.mean_g - z * m.mean_gz) * s.rstd;
    prefetch_twin(x + step + i);
    prefetch_twin(grad + step + i);
    if constexpr (kStream) {
      stream_twin(dx + i, result);
    } else {
      store_twin_up_to(dx + i, result, count);
    }
  });
}

template <bool kStream, class T>
PERSIMMON_INLINE void chunk_gradients(const LayerNormBackwardParams& p, int64_t chunk) {
  const int64_t C = p.C;
  const T* weight = static_cast<const T*>(p.weight);
  float* dweight = p.partials + chunk * 2 * C;
  float* dbias = dweight + C;
  __builtin_memset(dweight, 0, sizeof(float) * 2 * C);
  const int64_t first = chunk * p.rows_per_chunk;
  const int64_t last = first + p.rows_per_chunk < p.rows ? first + p.rows_per_chunk : p.rows;
  for (int64_t row = first; row < last;) {
    const T* x = static_cast<const T*>(p.x) + row * C;
    const T* grad = static_cast<const T*>(p.grad) + row * C;
    T* dx = static_cast<T*>(p.dx) + row * C;
    RowMoments moments[kGradientRows];
    const int rows = last - row >= kGradientRows ? kGradientRows : 1;
    if (rows == kGradientRows) {
      add_rows<kGradientRows>(x, grad, weight, C, p.eps, dweight, dbias, moments);
    } else {
      add_rows<1>(x, grad, weight, C, p.eps, dweight, dbias, moments);
    }
    const int64_t step = row + 2 * rows <= p.rows ? rows * C : 0;
    for (int r = 0; r < rows; ++r) {
      row_gradient<kStream>(x + r * C, grad + r * C, weight, moments[r], dx + r * C, C, step);
    }
    row += rows;
  }
}

void layer_norm_backward(const LayerNormBackwardParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool stream = p.bypass_caches && can_stream<T>(p.dx, p.C);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      stream ? chunk_gradients<true, T>(p, chunk) : chunk_gradients<false, T>(p, chunk);
    }
    if (stream) finish_streams();
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
