#include "relu2.h"

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

void relu2(const Relu2Params& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t blocks = (p.F + kRelu2Block - 1) / kRelu2Block;
    const T* bias = static_cast<const T*>(p.bias);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t column = item % blocks * kRelu2Block, first = item / blocks * p.F + column;
      const int64_t n = p.F - column < kRelu2Block ? p.F - column : kRelu2Block;
      const T* x = static_cast<const T*>(p.x) + first;
      const T* grad = p.grad != nullptr ? static_cast<const T*>(p.grad) + first : nullptr;
      T* y = static_cast<T*>(p.y) + first;
      for_each_vector(n, [&](int64_t i, int count) {
        vf u = load_up_to(x + i, count);
        if (bias != nullptr) u += load_up_to(bias + column + i, count);
        u = u < 0.f ? vf{} : u;
        store_up_to(y + i, grad != nullptr ? load_up_to(grad + i, count) * (u + u) : u * u, count);
      });
    }
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
