#include "qk_norm_rope.h"

#include "statistics.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// y = rope(LayerNorm(x)). Every element is normed where it is used, so a row needs no buffer.
template <class T>
PERSIMMON_INLINE void norm_rope_row(const T* x, const T* weight, const T* bias, const float* cos, const float* sin,
                                    T* y, int64_t D, int64_t R, float eps) {
  const Statistics s = statistics(x, D, eps);
  const auto normed = [&](int64_t i, int count) {
    return (load_up_to(x + i, count) - s.mean) * s.rstd * load_up_to(weight + i, count) + load_up_to(bias + i, count);
  };
  const int64_t half = R / 2;
  for_each_vector(half, [&](int64_t i, int count) {
    const vf a = normed(i, count), b = normed(half + i, count);
    const vf c = load_up_to(cos + i, count), n = load_up_to(sin + i, count);
    store_up_to(y + i, a * c - b * n, count);
    store_up_to(y + half + i, b * c + a * n, count);
  });
  for_each_vector(D - R, [&](int64_t i, int count) { store_up_to(y + R + i, normed(R + i, count), count); });
}

void qk_norm_rope(const QkNormRopeParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t D = p.D, R = p.R;
    const auto row_of = [](const RowsOut& out, int64_t b, int64_t h, int64_t row) {
      return static_cast<T*>(out.data) + b * out.batch_stride + h * out.head_stride + row * out.row_stride;
    };
    const auto typed = [](const void* data) { return static_cast<const T*>(data); };
    for (int64_t row = begin; row < end; ++row) {
      const int64_t t = row % p.T, h = row / p.T % p.H, b = row / p.T / p.H;
      const T* x = typed(p.qkv) + ((b * p.T + t) * p.H + h) * 3 * D;
      const int64_t angle = b * p.angle_batch_stride + t * (R / 2);
      const float *cos = p.cos + angle, *sin = p.sin + angle;
      norm_rope_row(x, typed(p.q_weight), typed(p.q_bias), cos, sin, static_cast<T*>(p.q) + row * D, D, R, p.eps);
      const int64_t slot = p.slots != nullptr ? p.slots[b * p.T + t] : t;
      if (slot < 0) continue;
      norm_rope_row(x + D, typed(p.k_weight), typed(p.k_bias), cos, sin, row_of(p.k, b, h, slot), D, R, p.eps);
      __builtin_memcpy(row_of(p.v, b, h, slot), x + 2 * D, sizeof(T) * D);
    }
  });
}

// dx of one row, and its terms of dweight and dbias. The gradient is rotated back into `g`, then, with
// z = (x - mean) * rstd and u = g * weight:  dx = rstd * (u - mean(u) - z * mean(u * z)).
template <class T>
PERSIMMON_INLINE void norm_rope_backward_row(const T* dy, const T* x, const T* weight, const float* cos,
                                             const float* sin, T* dx, float* dweight, float* dbias, float* g, int64_t D,
                                             int64_t R, float eps) {
  const int64_t half = R / 2;
  for_each_vector(half, [&](int64_t i, int count) {
    const vf a = load_up_to(dy + i, count), b = load_up_to(dy + half + i, count);
    const vf c = load_up_to(cos + i, count), n = load_up_to(sin + i, count);
    store_up_to(g + i, a * c + b * n, count);
    store_up_to(g + half + i, b * c - a * n, count);
  });
  for_each_vector(D - R, [&](int64_t i, int count) { store_up_to(g + R + i, load_up_to(dy + R + i, count), count); });
  const Statistics s = statistics(x, D, eps);
  vf sum_u{}, sum_uz{};
  for_each_vector(D, [&](int64_t i, int count) {  // the tail's padding lanes have g 0, so they add nothing
    const vf gi = load_up_to(g + i, count);
    const vf z = (load_up_to(x + i, count) - s.mean) * s.rstd;
    const vf u = gi * load_up_to(weight + i, count);
    sum_u += u;
    sum_uz += u * z;
    store_up_to(dweight + i, load_up_to(dweight + i, count) + gi * z, count);
    store_up_to(dbias + i, load_up_to(dbias + i, count) + gi, count);
  });
  const float mean_u = reduce_add(sum_u) / float(D), mean_uz = reduce_add(sum_uz) / float(D);
  for_each_vector(D, [&](int64_t i, int count) {
    const vf z = (load_up_to(x + i, count) - s.mean) * s.rstd;
    const vf u = load_up_to(g + i, count) * load_up_to(weight + i, count);
    store_up_to(dx + i, (u - mean_u - z * mean_uz) * s.rstd, count);
  });
}

void qk_norm_rope_backward(const QkNormRopeBackwardParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t D = p.D, R = p.R;
    const auto typed = [](const void* data) { return static_cast<const T*>(data); };
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      float* sums = p.partials + chunk * 5 * D;
      float* scratch = sums + 4 * D;
      __builtin_memset(sums, 0, sizeof(float) * 4 * D);
      const int64_t first = chunk * p.rows_per_chunk;
      const int64_t last = first + p.rows_per_chunk < p.rows ? first + p.rows_per_chunk : p.rows;
      for (int64_t row = first; row < last; ++row) {
        const int64_t h = row % p.H, t = row / p.H % p.T, b = row / p.H / p.T;
        const int64_t angle = b * p.angle_batch_stride + t * (R / 2);
        const float *cos = p.cos + angle, *sin = p.sin + angle;
        const int64_t grad = ((b * p.H + h) * p.T + t) * D;
        const T* x = typed(p.qkv) + row * 3 * D;
        T* dx = static_cast<T*>(p.dqkv) + row * 3 * D;
        norm_rope_backward_row(typed(p.dq) + grad, x, typed(p.q_weight), cos, sin, dx, sums, sums + D, scratch, D, R,
                               p.eps);
        norm_rope_backward_row(typed(p.dk) + grad, x + D, typed(p.k_weight), cos, sin, dx + D, sums + 2 * D,
                               sums + 3 * D, scratch, D, R, p.eps);
        __builtin_memcpy(dx + 2 * D, typed(p.dv) + grad, sizeof(T) * D);
      }
    }
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
