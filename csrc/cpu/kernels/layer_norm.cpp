#include "layer_norm.h"

#include "statistics.h"

namespace persimmon::cpu::PERSIMMON_ISA {

void layer_norm(const LayerNormParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t C = p.C;
    const T* weight = static_cast<const T*>(p.weight);
    const T* bias = static_cast<const T*>(p.bias);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(p.x) + row * C;
      if (p.residual != nullptr) {
        const T* residual = static_cast<const T*>(p.residual) + row * C;
        T* sum = static_cast<T*>(p.sum) + row * C;
        for_each_vector(C, [&](int64_t i, int count) {
          store_up_to(sum + i, load_up_to(x + i, count) + load_up_to(residual + i, count), count);
        });
        x = sum;
      }
      const Statistics s = statistics(x, C, p.eps);
      T* y = static_cast<T*>(p.y) + row * C;
      for_each_vector(C, [&](int64_t i, int count) {
        const vf normed = (load_up_to(x + i, count) - s.mean) * s.rstd;
        store_up_to(y + i, normed * load_up_to(weight + i, count) + load_up_to(bias + i, count), count);
      });
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
