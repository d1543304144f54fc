#include "relu2.h"

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int64_t kAhead = 1024;  // elements between reading one and asking for it

// Stores with one rounding. Every NaN that arithmetic on bf16 numbers makes has zeros in its lower half, so rounding
// cannot carry it into another number; unlike `store`, this needs no case for it.
PERSIMMON_INLINE void store_result(bf16* y, vf v, int count) {
  const vu u = bit_cast<vu>(v);
  const vh rounded = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, vh);
  __builtin_memcpy(y, &rounded, sizeof(bf16) * count);
}
template <class T>
PERSIMMON_INLINE void store_result(T* y, vf v, int count) {
  store_up_to(y, v, count);
}

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
        __builtin_prefetch(x + i + kAhead, 0, 2);  // the processor's own prefetcher stops at the end of a page
        __builtin_prefetch(y + i + kAhead, 1, 2);
        if (grad != nullptr) __builtin_prefetch(grad + i + kAhead, 0, 2);
        vf u = load_up_to(x + i, count);
        if (bias != nullptr) u += load_up_to(bias + column + i, count);
        u = u < 0.f ? vf{} : u;
        store_result(y + i, grad != nullptr ? load_up_to(grad + i, count) * (u + u) : u * u, count);
      });
    }
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
