// C += A B for blocks that fit in cache, summed in fp32. A and B are fp32 (B of any element type, converted as it is
// loaded), or both hold pairs of bf16 along the inner dimension. Only for files compiled per instruction set.
//
// A tile of C stays in registers while the inner dimension runs; each step loads a few vectors of a row of B and
// multiplies them by scalars of A, so A may have any strides (a transposed A costs nothing).
#pragma once

#include "codes.h"
#include "pairs.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// The tile: as many rows and vectors as leave registers for a row of B and one scalar of A.
#if defined(__AVX512F__)
inline constexpr int kTileRows = 6, kTileVectors = 4;  // of 32 registers
#elif defined(__AVX2__)
inline constexpr int kTileRows = 6, kTileVectors = 2;  // of 16 registers
#else
inline constexpr int kTileRows = 2, kTileVectors = 2;  // of 16 registers, two for a vector
#endif

template <class E>
struct BlockA {  // element (i, k) is data[i * row_stride + k * inner_stride]
  const E* data;
  int64_t row_stride, inner_stride;

  const E& at(int64_t i, int64_t k) const { return data[i * row_stride + k * inner_stride]; }
  BlockA from(int64_t i, int64_t k) const { return {&at(i, k), row_stride, inner_stride}; }
};
template <class E>
BlockA(const E*, int64_t, int64_t) -> BlockA<E>;

template <class E>
struct BlockB {  // element (k, j) is data[k * row_stride + j]
  const E* data;
  int64_t row_stride;

  auto vector(int64_t k, int64_t j) const { return load(data + k * row_stride + j); }
  BlockB from(int64_t k) const { return {data + k * row_stride, row_stride}; }
};
template <class E>
BlockB(const E*, int64_t) -> BlockB<E>;

template <int rows, int vectors, class A, class B>
PERSIMMON_INLINE void tile_product(const A& a, const B& b, int64_t column, float* c, int64_t ldc, int64_t inner) {
  vf sum[rows][vectors]{};  // from zero: over many blocks, a sum of block sums is more accurate than one long sum
  for (int64_t k = 0; k < inner; ++k) {
    decltype(b.vector(0, 0)) row[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) row[j] = b.vector(k, column + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const auto x = broadcast(a.at(i, k));
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add(sum[i][j], x, row[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* element = c + i * ldc + column + j * kLanes;
      store(element, load(element) + sum[i][j]);
    }
  }
}

template <int rows, class A, class B>
void row_product(const A& a, const B& b, float* c, int64_t ldc, int64_t columns, int64_t inner) {
  int64_t j = 0;
  for (; j + kTileVectors * kLanes <= columns; j += kTileVectors * kLanes) {
    tile_product<rows, kTileVectors>(a, b, j, c, ldc, inner);
  }
  for (; j < columns; j += kLanes) tile_product<rows, 1>(a, b, j, c, ldc, inner);
}

// C [rows, columns] += A [rows, inner] B [inner, columns]; columns is a multiple of kLanes.
template <class A, class B>
PERSIMMON_INLINE void block_product(const A& a, const B& b, float* c, int64_t ldc, int64_t rows, int64_t columns,
                                    int64_t inner) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows)
    row_product<kTileRows>(a.from(i, 0), b, c + i * ldc, ldc, columns, inner);
  if (kTileRows > 4 && i + 4 <= rows) {
    row_product<4>(a.from(i, 0), b, c + i * ldc, ldc, columns, inner);
    i += 4;
  }
  for (; i + 2 <= rows; i += 2) row_product<2>(a.from(i, 0), b, c + i * ldc, ldc, columns, inner);
  for (; i < rows; ++i) row_product<1>(a.from(i, 0), b, c + i * ldc, ldc, columns, inner);
}

// c [n] += x row, n a multiple of kLanes.
template <class E>
PERSIMMON_INLINE void add_row(const float& x, const E* row, float* c, int64_t n) {
  block_product(BlockA<float>{&x, 0, 0}, BlockB<E>{row, 0}, c, n, 1, n, 1);
}

// block_product where row i takes part in [begin(i), end(i)) of the inner dimension only, both non-decreasing. What
// lies outside is not read: the product of a zero of A and a NaN of B would be NaN.
template <class A, class B, class Begin, class End>
PERSIMMON_INLINE void ragged_product(const A& a, const B& b, float* c, int64_t ldc, int64_t rows, int64_t columns,
                                     Begin&& begin, End&& end) {
  const auto part = [&](int64_t i, int64_t n, int64_t from, int64_t to) {
    if (from < to) block_product(a.from(i, from), b.from(from), c + i * ldc, ldc, n, columns, to - from);
  };
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const int64_t n = i + kTileRows < rows ? kTileRows : rows - i;
    const int64_t from = begin(i + n - 1), to = end(i);  // what all n rows take part in
    if (from < to) {
      part(i, n, from, to);
      for (int64_t r = i; r < i + n; ++r) {
        part(r, 1, begin(r), from);
        part(r, 1, to, end(r));
      }
    } else {
      for (int64_t r = i; r < i + n; ++r) part(r, 1, begin(r), end(r));
    }
  }
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
