#include "linear_epilogue.h"

#include "epilogue.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

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
    for_each_block(p.N, begin, end, [&](int64_t row, int64_t column, int64_t columns) {
      for_each_vector(columns, [&](int64_t i, int count) {
        // A vector lies within a block, whose end is padded: it can be loaded whole.
        const float* partials = p.partials + ((column + i) / p.block * p.M + row) * p.block + (column + i) % p.block;
        vf v{};
        for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
          v += load(partials + chunk * p.blocks * p.M * p.block);
        }
        if (p.scale != nullptr) v *= load_up_to(p.scale + column + i, count);
        store_product<T>(p.epilogue, p.y, p.N, row, column + i, v, count);
      });
    });
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
