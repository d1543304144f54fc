// Which products go to the kernels that stream rows of a hidden-major weight, and how that work is divided. Pure
// functions of the sizes: the number of threads never enters, so a result is the same for any number of them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace persimmon::cpu {

// Up to this many rows of x, a product is bound by reading the weight once; beyond, by arithmetic, and torch's own
// matrix product is the faster one.
inline constexpr int64_t kFewRows = 16;

enum class SparsePath { nonzero_rows, dense };

// The row kernels run at the speed of memory at any density (see `gather_rows`), so density does not decide: only
// whether rows of W^T are contiguous, and whether x is thin.
inline SparsePath sparse_path(int64_t x_rows, bool hidden_major) {
  return x_rows <= kFewRows && hidden_major ? SparsePath::nonzero_rows : SparsePath::dense;
}

// Rows of W^T whose products are summed together, before the sums of all chunks are added in order. At least 64, so
// that adding them stays cheap; a multiple of 8, which the kernels take in a pass; at most 16 chunks.
inline int64_t rows_per_chunk(int64_t rows) {
  constexpr int64_t kMaxChunks = 16, kMinRows = 64, kPass = 8;
  const int64_t even = (rows + kMaxChunks - 1) / kMaxChunks;
  return std::max(kMinRows, (even + kPass - 1) / kPass * kPass);
}

}  // namespace persimmon::cpu
