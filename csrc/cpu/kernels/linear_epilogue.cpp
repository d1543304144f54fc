#include "linear_epilogue.h"

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

PERSIMMON_INLINE vf square_relu(vf u) {
  u = u < 0.f ? vf{} : u;  // a NaN stays a NaN
  return u * u;
}

// Calls body(row, first column, columns) for the blocks [begin, end) of [rows, N].
template <class Body>
PERSIMMON_INLINE void for_each_block(int64_t N, int64_t begin, int64_t end, Body&& body) {
  const int64_t blocks = (N + kEpilogueColumns - 1) / kEpilogueColumns;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t column = item % blocks * kEpilogueColumns;
    body(item / blocks, column, N - column < kEpilogueColumns ? N - column : kEpilogueColumns);
  }
}

void linear_epilogue(const LinearEpilogueParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_each_block(p.N, begin, end, [&](int64_t row, int64_t column, int64_t columns) {
      T* y = static_cast<T*>(p.y) + row * p.N + column;
      const T* residual = p.residual != nullptr ? static_cast<const T*>(p.residual) + row * p.N + column : nullptr;
      for_each_vector(columns, [&](int64_t i, int count) {
        vf v = load_up_to(y + i, count);
        if (p.relu2) v = square_relu(v);
        if (residual != nullptr) v += load_up_to(residual + i, count);
        store_up_to(y + i, v, count);
      });
    });
  });
}

void sum_partials(const SumPartialsParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* bias = static_cast<const T*>(p.epilogue.bias);
    for_each_block(p.N, begin, end, [&](int64_t row, int64_t column, int64_t columns) {
      const int64_t offset = row * p.N + column;
      const T* residual =
          p.epilogue.residual != nullptr ? static_cast<const T*>(p.epilogue.residual) + offset : nullptr;
      T* y = static_cast<T*>(p.y) + offset;
      for_each_vector(columns, [&](int64_t i, int count) {
        // A vector lies within a block, whose end is padded: it can be loaded whole.
        const float* partials = p.partials + ((column + i) / p.block * p.M + row) * p.block + (column + i) % p.block;
        vf v{};
        for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
          v += load(partials + chunk * p.blocks * p.M * p.block);
        }
        if (p.scale != nullptr) v *= load_up_to(p.scale + column + i, count);
        if (bias != nullptr) v += load_up_to(bias + column + i, count);
        if (p.epilogue.relu2) v = square_relu(v);
        if (residual != nullptr) v += load_up_to(residual + i, count);
        store_up_to(y + i, v, count);
      });
    });
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
