// The end of a product on a vector of one row's columns. Only for files compiled per instruction set (see kernel.h).
#pragma once

#include "linear_epilogue.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

PERSIMMON_INLINE vf square_relu(vf u) {
  u = u < 0.f ? vf{} : u;  // a NaN stays a NaN
  return u * u;
}

// y[row, column + i] = act(v[i] + bias) + residual for i < count, rounded to T. y [M, N].
template <class T>
PERSIMMON_INLINE void store_product(const Epilogue& e, void* y, int64_t N, int64_t row, int64_t column, vf v,
                                    int count) {
  const int64_t offset = row * N + column;
  if (e.bias != nullptr) v += load_up_to(static_cast<const T*>(e.bias) + column, count);
  if (e.relu2) v = square_relu(v);
  if (e.residual != nullptr) v += load_up_to(static_cast<const T*>(e.residual) + offset, count);
  store_up_to(static_cast<T*>(y) + offset, v, count);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
