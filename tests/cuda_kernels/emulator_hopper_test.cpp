// The emulator's own tests: mbarriers, bulk tensor copies and warpgroup products.
#include "emulator_test.h"

namespace {

using emulator_test::expect;
using simt::bf16;
using simt::GlobalBuffer;
using simt::TensorMap;

enum class Bug {
  kNone,
  kNoBarrierAfterInit,
  kNoWaitForFull,
  kNoWaitForEmpty,
  kTooFewBytes,
  kTooManyBytes,
  kTooManyArrivals,
  kTooFewArrivals,
  kWrongParity,
  kArrivesBeforeProductsAreDone,
  kNoWgmmaFence,
  kNoWgmmaWait,
  kMisalignedTile,
  kPastEnd,
  kNotInitialised,
  kHalfWarpMultiplies,
};

constexpr int kStages = 2, kRows = 64, kColumns = 128, kTileElements = 64 * 64;

// d [64, 128] = a [64, K] b [128, K]^T in tiles of 64 columns, which are the heads of a [1, H, 64, 64] and b. Warps 0
// to 3 multiply, a thread of warp 4 copies.
template <class T, Bug kBug>
SIMT_DEVICE void multiply_block(const TensorMap& a_map, const TensorMap& b_map, int tiles, float* out) {
  SIMT_DYNAMIC_SHARED(memory);
  const auto a_tiles = simt::shared_region<T>(memory, 0, kStages * kTileElements, "a");
  const auto b_tiles = simt::shared_region<T>(memory, kStages * kTileElements * 2, kStages * 2 * kTileElements, "b");
  const auto full = simt::shared_region<uint64_t>(memory, kStages * 3 * kTileElements * 2, kStages, "full");
  const auto empty = simt::shared_region<uint64_t>(memory, kStages * (3 * kTileElements * 2 + 8), kStages, "empty");
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      if (kBug != Bug::kNotInitialised) simt::mbarrier_init(full + stage, 1);
      simt::mbarrier_init(empty + stage, kBug == Bug::kTooManyArrivals ? 3 : kBug == Bug::kTooFewArrivals ? 5 : 4);
    }
    simt::fence_mbarrier_init();
  }
  if (kBug != Bug::kNoBarrierAfterInit) __syncthreads();
  if (warp == 4) {
    for (int tile = 0; lane == 0 && tile < tiles; ++tile) {
      const int stage = tile % kStages, use = tile / kStages % 2;
      if (kBug != Bug::kNoWaitForEmpty) simt::mbarrier_wait(empty + stage, use ^ 1);
      const int bytes = 3 * kTileElements * 2 + (kBug == Bug::kTooFewBytes    ? -128
                                                 : kBug == Bug::kTooManyBytes ? 128
                                                                              : 0);
      simt::mbarrier_arrive_expect(full + stage, bytes);
      const int place = stage * kTileElements + (kBug == Bug::kMisalignedTile ? 64
                                                 : kBug == Bug::kPastEnd      ? kTileElements
                                                                              : 0);
      simt::tma_load(a_tiles + place, a_map, full + stage, 0, tile, 0);
      simt::tma_load(b_tiles + stage * 2 * kTileElements, b_map, full + stage, 0, tile, 0);
    }
    return;
  }
  float d[kColumns / 8][4];
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages, use = tile / kStages % 2;
    if (kBug != Bug::kNoWaitForFull) simt::mbarrier_wait(full + stage, kBug == Bug::kWrongParity ? use ^ 1 : use);
    const auto a = simt::swizzled_tile(a_tiles + stage * kTileElements);
    const auto b = simt::swizzled_tile(b_tiles + stage * 2 * kTileElements);
    if (kBug != Bug::kNoWgmmaFence) simt::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 64; k += 16) {
      if (kBug != Bug::kHalfWarpMultiplies || lane < 16) simt::wgmma_by_rows(T{}, d, a, b, k, tile > 0 || k > 0);
    }
    simt::wgmma_commit();
    if (kBug == Bug::kArrivesBeforeProductsAreDone && lane == 0) simt::mbarrier_arrive(empty + stage);
    if (kBug != Bug::kNoWgmmaWait) simt::wgmma_wait<0>();
    simt::wgmma_pin(d);
    if (kBug != Bug::kArrivesBeforeProductsAreDone && lane == 0) simt::mbarrier_arrive(empty + stage);
  }
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[(warp * 16 + lane / 4 + i / 2 * 8) * kColumns + n * 8 + lane % 4 * 2 + i % 2] = d[n][i];
    }
  }
}

template <class T, Bug kBug>
__global__ void multiply(__grid_constant__ const TensorMap a_map, __grid_constant__ const TensorMap b_map, int tiles,
                         float* out) {
  if constexpr (simt::kHopper) multiply_block<T, kBug>(a_map, b_map, tiles, out);
}

// d [64, 64] += a [64, 64] b [64, 64] with a in registers and b written to its tile by threads; two batches in flight.
enum class TileBug { kNone, kNoProxyFence, kNoBarrier, kChangesRegisters };
template <class T, TileBug kBug>
SIMT_DEVICE void multiply_registers_block(const T* a, const T* b, float* out) {
  SIMT_DYNAMIC_SHARED(memory);
  const auto tile = simt::shared_region<T>(memory, 0, kTileElements, "b");
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < kTileElements; i += 128) {
    const int row = i / 64, column = i % 64;
    tile[row * 64 + (column / 8 ^ row % 8) * 8 + column % 8] = b[i];
  }
  if (kBug != TileBug::kNoProxyFence) simt::fence_async_proxy();
  if (kBug != TileBug::kNoBarrier) __syncthreads();
  uint32_t left[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T* const pair = a + (warp * 16 + lane / 4 + i % 2 * 8) * 64 + k * 16 + lane % 4 * 2 + i / 2 * 8;
      left[k][i] = simt::pack2<T>(simt::to_float(pair[0]), simt::to_float(pair[1]));
    }
  }
  float d[8][4] = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    simt::wgmma_fence();
    simt::wgmma_by_columns(T{}, d, left[k], simt::swizzled_tile(tile), k * 16);
    simt::wgmma_commit();
    if (kBug == TileBug::kChangesRegisters) left[k][0] ^= 1;
    simt::wgmma_wait<1>();
  }
  simt::wgmma_wait<0>();
  simt::wgmma_pin(d);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[(warp * 16 + lane / 4 + i / 2 * 8) * 64 + n * 8 + lane % 4 * 2 + i % 2] = d[n][i];
    }
  }
}

template <class T, TileBug kBug>
__global__ void multiply_registers(const T* a, const T* b, float* out) {
  if constexpr (simt::kHopper) multiply_registers_block<T, kBug>(a, b, out);
}

// Values that make every sum exact.
template <class T>
void fill(const GlobalBuffer<T>& buffer, int period) {
  for (size_t i = 0; i < buffer.size(); ++i) {
    buffer[i] = simt::from_float<T>(static_cast<float>(static_cast<int>(i * 7 % period) - period / 2));
  }
}

template <class T>
struct Operands {
  int tiles, a_rows;
  GlobalBuffer<T> a, b;
  TensorMap a_map, b_map;

  Operands(int tile_count, int rows)
      : tiles(tile_count), a_rows(rows), a(tile_count * rows * 64), b(tile_count * kColumns * 64) {
    fill(a, 11);
    fill(b, 7);
    const bool made = simt::make_tensor_map(&a_map, simt::Dtype::kBFloat16, a.data(), rows, tiles, 1, 64, rows * 64,
                                            a.size(), kRows) &&
                      simt::make_tensor_map(&b_map, simt::Dtype::kBFloat16, b.data(), kColumns, tiles, 1, 64,
                                            kColumns * 64, b.size(), kColumns);
    expect(made, "make_tensor_map");
  }
};

template <class T, Bug kBug>
void launch_multiply(const Operands<T>& operands, const GlobalBuffer<float>& out) {
  constexpr size_t kBytes = kStages * (3 * kTileElements * 2 + 16);
  simt::launch_shared(multiply<T, kBug>, dim3(2), dim3(160), kBytes, nullptr, operands.a_map, operands.b_map,
                      operands.tiles, out.data());
}

template <class T>
void check_multiply(int tiles, int rows) {
  const Operands<T> operands(tiles, rows);
  const GlobalBuffer<float> out(kRows * kColumns);
  launch_multiply<T, Bug::kNone>(operands, out);
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      float want = 0.0f;
      for (int k = 0; m < rows && k < tiles * 64; ++k) {
        want += simt::to_float(operands.a[(k / 64 * rows + m) * 64 + k % 64]) *
                simt::to_float(operands.b[(k / 64 * kColumns + n) * 64 + k % 64]);
      }
      expect(out[m * kColumns + n] == want, "multiply");
    }
  }
}

template <class T, TileBug kBug>
void launch_registers(const GlobalBuffer<T>& a, const GlobalBuffer<T>& b, const GlobalBuffer<float>& out) {
  simt::launch_shared(multiply_registers<T, kBug>, dim3(1), dim3(128), kTileElements * 2, nullptr, a.data(), b.data(),
                      out.data());
}

template <class T>
void check_registers() {
  const GlobalBuffer<T> a(kTileElements), b(kTileElements);
  const GlobalBuffer<float> out(kTileElements);
  fill(a, 11);
  fill(b, 7);
  launch_registers<T, TileBug::kNone>(a, b, out);
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < 64; ++n) {
      float want = 0.0f;
      for (int k = 0; k < 64; ++k) want += simt::to_float(a[m * 64 + k]) * simt::to_float(b[k * 64 + n]);
      expect(out[m * 64 + n] == want, "multiply_registers");
    }
  }
}

void check_right_kernels() {
  for (int seed = 0; seed < emulator_test::kSeeds; ++seed) {
    simt::set_seed(seed);
    check_multiply<bf16>(1, 64);
    check_multiply<bf16>(5, 64);
    check_multiply<simt::fp16>(4, 37);  // the rest of the box lies outside the tensor
    check_registers<bf16>();
    check_registers<simt::fp16>();
  }
}

#if !defined(__CUDACC__)
template <Bug kBug>
void expect_multiply_error(const char* words) {
  const Operands<bf16> operands(5, 64);
  const GlobalBuffer<float> out(kRows * kColumns);
  emulator_test::expect_error(words, [&] { launch_multiply<bf16, kBug>(operands, out); });
}

template <TileBug kBug>
void expect_registers_error(const char* words) {
  const GlobalBuffer<bf16> a(kTileElements), b(kTileElements);
  const GlobalBuffer<float> out(kTileElements);
  emulator_test::expect_error(words, [&] { launch_registers<bf16, kBug>(a, b, out); });
}

void check_wrong_kernels() {
  expect_multiply_error<Bug::kNoBarrierAfterInit>("SIMT ERROR: ");  // not initialised, or a race on the barrier's word
  expect_multiply_error<Bug::kNoWaitForFull>("SIMT ERROR: ");       // a race, or data in flight
  expect_multiply_error<Bug::kNoWaitForEmpty>("SIMT ERROR: ");
  expect_multiply_error<Bug::kTooFewBytes>("SIMT ERROR: ");
  expect_multiply_error<Bug::kTooManyBytes>("deadlock");
  expect_multiply_error<Bug::kTooManyArrivals>("SIMT ERROR: ");
  expect_multiply_error<Bug::kTooFewArrivals>("deadlock");
  expect_multiply_error<Bug::kWrongParity>("SIMT ERROR: ");
  expect_multiply_error<Bug::kArrivesBeforeProductsAreDone>("SIMT ERROR: ");
  expect_multiply_error<Bug::kNoWgmmaFence>("wgmma without wgmma_fence");
  expect_multiply_error<Bug::kNoWgmmaWait>("SIMT ERROR: ");
  expect_multiply_error<Bug::kMisalignedTile>("not aligned to 1024 bytes");
  expect_multiply_error<Bug::kPastEnd>("outside the shared array a");
  expect_multiply_error<Bug::kNotInitialised>("the mbarrier has not been initialised");
  expect_multiply_error<Bug::kHalfWarpMultiplies>("divergent collective");
  expect_registers_error<TileBug::kNoProxyFence>("without fence_async_proxy");
  expect_registers_error<TileBug::kNoBarrier>("race: ");
  expect_registers_error<TileBug::kChangesRegisters>("the registers of a left operand changed");
}
#endif

}  // namespace

int main() {
  check_right_kernels();
#if !defined(__CUDACC__)
  check_wrong_kernels();
#endif
  return emulator_test::finish("emulator_hopper");
}
