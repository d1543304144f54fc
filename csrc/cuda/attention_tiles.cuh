// Tiles of rows of D = 64 16-bit elements in shared memory, and their products on the tensor cores of sm_80: what the
// forward and the backward attention kernels share.
//
// A row is 128 bytes, 8 chunks of 16. Chunk c of row r lies at place c ^ (r % 8) of its row, so that the 8 rows that
// one ldmatrix step reads at one column lie in 8 different groups of banks.
#pragma once
#include "../simt/simt.h"
#include "head_dim.cuh"

namespace persimmon::cuda {

constexpr int kChunks = 8;  // of a row
constexpr int kChunkElements = 8;
constexpr int kTileThreads = 128;  // of the blocks that load tiles: 4 warps
constexpr float kLog2E = 1.4426950408889634f;

// Fragments of mma.m16n8k16 for kM times 16 rows: left operands of 64 columns, and results of kN columns.
template <int kM>
using Left = uint32_t[kM][kHeadDim / 16][4];
template <int kM, int kN>
using Result = float[kM][kN / 8][4];

// Rows of one head: element (row, d) at data[row * stride + d].
template <class T>
struct HeadRows {
  const T* data;
  int64_t stride;
};

// Place of a chunk, in elements of 4 bytes: tiles are arrays of words.
SIMT_DEVICE int chunk_at(int row, int chunk) { return (row * kChunks + (chunk ^ row % 8)) * 4; }

// Starts copying rows `first` to `first` + kRows into a tile; rows outside [begin, end) become zeros and are not read.
template <int kRows, class T>
SIMT_DEVICE void load_tile(simt::Shared<uint32_t> tile, const HeadRows<T>& rows, int first, int begin, int end) {
  constexpr int kRowsPerStep = kTileThreads / kChunks;
  const int chunk = threadIdx.x % kChunks, first_in_tile = threadIdx.x / kChunks;
  const T* source = rows.data + (first + first_in_tile) * rows.stride + chunk * kChunkElements;
#pragma unroll
  for (int i = 0; i < kRows / kRowsPerStep; ++i) {
    const int in_tile = first_in_tile + i * kRowsPerStep, row = first + in_tile;
    simt::cp_async16(tile + chunk_at(in_tile, chunk), source, row >= begin && row < end);
    source += kRowsPerStep * rows.stride;
  }
}

// Rows `first` to `first` + 16 kM of a tile as a left operand.
template <int kM>
SIMT_DEVICE void load_left(Left<kM>& left, simt::Shared<uint32_t> tile, int first) {
  const int lane = threadIdx.x % simt::kWarpSize;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      simt::ldmatrix_x4(left[m][k], tile + chunk_at(first + m * 16 + lane % 16, k * 2 + lane / 16));
    }
  }
}

// result [16 kM, kN] += left [16 kM, 64] tile^T, where the tile has kN rows.
template <class T, int kM, int kN>
SIMT_DEVICE void multiply_by_rows(Result<kM, kN>& result, const Left<kM>& left, simt::Shared<uint32_t> tile) {
  const int lane = threadIdx.x % simt::kWarpSize;
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) {
      uint32_t right[4];
      simt::ldmatrix_x4(right, tile + chunk_at(n * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        simt::mma_m16n8k16<T>(result[m][2 * n], left[m][k], right[0], right[1]);
        simt::mma_m16n8k16<T>(result[m][2 * n + 1], left[m][k], right[2], right[3]);
      }
    }
  }
}

// sum [16 kM, 64] += round(weights [16 kM, kN]) tile, where the tile has kN rows: a result of one product, rounded to
// 16 bits, is the left operand of the next without leaving its registers.
template <class T, int kM, int kN>
SIMT_DEVICE void multiply_by_columns(Result<kM, kHeadDim>& sum, const Result<kM, kN>& weights,
                                     simt::Shared<uint32_t> tile) {
  const int lane = threadIdx.x % simt::kWarpSize;
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    uint32_t left[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&pair)[4] = weights[m][2 * k + i / 2];
        left[m][i] = simt::pack2<T>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      uint32_t right[4];
      simt::ldmatrix_x4_trans(right, tile + chunk_at(k * 16 + lane % 16, n * 2 + lane / 16));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        simt::mma_m16n8k16<T>(sum[m][2 * n], left[m], right[0], right[1]);
        simt::mma_m16n8k16<T>(sum[m][2 * n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

// Rounds a warp's 16 kM rows of results, times a factor a row, and writes those before `end` with 16-byte stores.
// Element (row, d) goes to out[row * stride + d]; rows are `first` + 0, 1, …. `tile` is 16 kM rows of shared memory
// that no other warp uses.
template <class T, int kM>
SIMT_DEVICE void store_rows(const Result<kM, kHeadDim>& values, const float (&factor)[kM][2],
                            simt::Shared<uint32_t> tile, T* out, int64_t stride, int first, int end) {
  const int lane = threadIdx.x % simt::kWarpSize;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        const float scale = factor[m][r];
        tile[chunk_at(m * 16 + r * 8 + lane / 4, n) + lane % 4] =
            simt::pack2<T>(values[m][n][2 * r] * scale, values[m][n][2 * r + 1] * scale);
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kM * 4; ++i) {
    const int row = i * 4 + lane / kChunks, chunk = lane % kChunks;
    if (first + row >= end) continue;
    simt::store16(out + (first + row) * stride + chunk * kChunkElements,
                  simt::load_shared16(tile + chunk_at(row, chunk)));
  }
}

}  // namespace persimmon::cuda
