#include "int8_rows.h"

#include "attention_blocks.h"

namespace persimmon::cpu::PERSIMMON_ISA {
namespace {

template <class E>
PERSIMMON_INLINE E* row_of(const RowsOut& out, int64_t b, int64_t h, int64_t row) {
  return static_cast<E*>(out.data) + b * out.batch_stride + h * out.head_stride + row * out.row_stride;
}

template <class T>
PERSIMMON_INLINE void write_row(const T* x, int64_t D, int8_t* codes, float* scale) {
  constexpr float kLargest = 127.f, kSmallestNormal = 1.17549435e-38f, kRound = 0x1.8p23f;
  vf top{}, not_finite{};
  for_each_vector(D, [&](int64_t i, int count) {
    const vf value = load_up_to(x + i, count);
    top = vmax(vmax(value, -value), top);
    not_finite += value - value;  // 0, or NaN
  });
  *scale = (reduce_max(top) + reduce_add(not_finite)) / kLargest;
  const float divisor = *scale > kSmallestNormal ? *scale : kSmallestNormal;
  for_each_vector(D, [&](int64_t i, int count) {
    const vf code = (load_up_to(x + i, count) / divisor + kRound) - kRound;  // rounded by the addition
    const vi clamped = __builtin_convertvector(vmin(vmax(code, broadcast(-kLargest)), broadcast(kLargest)), vi);
    for (int j = 0; j < count; ++j) codes[i + j] = int8_t(clamped[j]);
  });
}

}  // namespace

void int8_rows(const Int8RowsParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t t = row % p.T, h = row / p.T % p.H, b = row / p.T / p.H, slot = p.slots[b * p.T + t];
      if (slot < 0) continue;
      write_row(row_of<decltype(tag)>(p.x, b, h, t), p.D, row_of<int8_t>(p.codes, b, h, slot),
                row_of<float>(p.scale, b, h, slot));
    }
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
