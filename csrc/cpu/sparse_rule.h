// Which products go to the kernels that stream rows of a hidden-major weight, and how that work is divided. Pure
// functions of the sizes: the number of threads never enters, so a result is the same for any number of them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace persimmon::cpu {

// Up to this many rows of x, a product is bound by reading the weight once; beyond, by arithmetic, and torch's own
// matrix product is the faster one.
inline constexpr int64_t kFewRows = 16;

enum class SparsePath { nonzero_rows, dense };

// The row kernels run at the speed of memory at any density, so density does not decide: only whether rows of W^T are
// contiguous, and whether x is thin.
inline SparsePath sparse_path(int64_t x_rows, bool hidden_major) {
  return x_rows <= kFewRows && hidden_major ? SparsePath::nonzero_rows : SparsePath::dense;
}

// Into how many chunks the rows of W^T are divided, whose sums are then added in order. Few, since the sums of several
// rows of x take much memory; a power of two, for whole rows where there are as many threads. More threads than chunks
// divide the columns, which changes no result.
inline int64_t chunks_of(int64_t rows, int64_t x_rows) {
  constexpr uint64_t kMinRows = 32;
  const uint64_t most = x_rows == 1 ? 8 : 4;
  return int64_t(std::clamp<uint64_t>(std::bit_floor(uint64_t(rows) / kMinRows), 1, most));
}

}  // namespace persimmon::cpu
