// C += A B for blocks that fit in cache: A and C fp32, B of any element type, converted as it is loaded. Only for files
// compiled per instruction set.
//
// A tile of C stays in registers while the inner dimension runs; each step loads a few vectors of a row of B and
// multiplies them by scalars of A, so A may have any strides (a transposed A costs nothing).
#pragma once

#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// The tile: as many rows and vectors as leave registers for a row of B and one scalar of A.
#if defined(__AVX512F__)
inline constexpr int kTileRows = 6, kTileVectors = 4;  // of 32 registers
#elif defined(__AVX2__)
inline constexpr int kTileRows = 6, kTileVectors = 2;  // of 16 registers
#else
inline constexpr int kTileRows = 2, kTileVectors = 2;  // of 16 registers, two for a vector
#endif

struct BlockA {  // element (i, k) is data[i * row_stride + k * inner_stride]
  const float* data;
  int64_t row_stride, inner_stride;
};

template <int rows, int vectors, class T>
PERSIMMON_INLINE void tile_product(BlockA a, const T* b, int64_t ldb, float* c, int64_t ldc, int64_t inner) {
  vf sum[rows][vectors]{};  // from zero: over many blocks, a sum of block sums is more accurate than one long sum
  for (int64_t k = 0; k < inner; ++k) {
    vf row[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) row[j] = load(b + k * ldb + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const vf x = broadcast(a.data[i * a.row_stride + k * a.inner_stride]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += x * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* element = c + i * ldc + j * kLanes;
      store(element, load(element) + sum[i][j]);
    }
  }
}

template <int rows, class T>
void row_product(BlockA a, const T* b, int64_t ldb, float* c, int64_t ldc, int64_t columns, int64_t inner) {
  int64_t j = 0;
  for (; j + kTileVectors * kLanes <= columns; j += kTileVectors * kLanes) {
    tile_product<rows, kTileVectors>(a, b + j, ldb, c + j, ldc, inner);
  }
  for (; j < columns; j += kLanes) tile_product<rows, 1>(a, b + j, ldb, c + j, ldc, inner);
}

// C [rows, columns] += A [rows, inner] B [inner, columns]; columns is a multiple of kLanes.
template <class T>
PERSIMMON_INLINE void block_product(BlockA a, const T* b, int64_t ldb, float* c, int64_t ldc, int64_t rows,
                                    int64_t columns, int64_t inner) {
  int64_t i = 0;
  const auto row = [&](int64_t i) { return BlockA{a.data + i * a.row_stride, a.row_stride, a.inner_stride}; };
  for (; i + kTileRows <= rows; i += kTileRows)
    row_product<kTileRows>(row(i), b, ldb, c + i * ldc, ldc, columns, inner);
  for (; i + 2 <= rows; i += 2) row_product<2>(row(i), b, ldb, c + i * ldc, ldc, columns, inner);
  for (; i < rows; ++i) row_product<1>(row(i), b, ldb, c + i * ldc, ldc, columns, inner);
}

// block_product where row i takes part in [from(i), to(i)) of the inner dimension only, both non-decreasing. What lies
// outside is not read: the product of a zero of A and a NaN of B would be NaN.
template <class T, class From, class To>
PERSIMMON_INLINE void ragged_product(BlockA a, const T* b, int64_t ldb, float* c, int64_t ldc, int64_t rows,
                                     int64_t columns, From&& from, To&& to) {
  const auto part = [&](int64_t i, int64_t n, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const BlockA slice{a.data + i * a.row_stride + begin * a.inner_stride, a.row_stride, a.inner_stride};
    block_product(slice, b + begin * ldb, ldb, c + i * ldc, ldc, n, columns, end - begin);
  };
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const int64_t n = i + kTileRows < rows ? kTileRows : rows - i;
    const int64_t begin = from(i + n - 1), end = to(i);  // what all n rows take part in
    if (begin < end) {
      part(i, n, begin, end);
      for (int64_t r = i; r < i + n; ++r) {
        part(r, 1, from(r), begin);
        part(r, 1, end, to(r));
      }
    } else {
      for (int64_t r = i; r < i + n; ++r) part(r, 1, from(r), to(r));
    }
  }
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
