// The kernel behind sparse_linear.cuh, for every weight format, and its launcher.
#pragma once
#include "plan.cuh"
#include "product_epilogue.cuh"
#include "sparse_linear.cuh"
#include "weight_formats.cuh"

namespace persimmon::cuda {

constexpr int kSparseThreads = 256;
constexpr int kSparseWarps = kSparseThreads / simt::kWarpSize;

// A block takes kUnits hidden units and the columns that a warp reads of a row in one 16-byte load a lane; its warps
// share the units. At F = 16384, C = 4096 that is 256 blocks in each format, two for a multiprocessor, each with up to
// 4 rows (16 KB) in flight. A lane holds 64 sums at most.
template <class Weight>
struct SparseTile {
  static constexpr int kColumns = simt::kWarpSize * Weight::kValues;
  static constexpr int kUnits = 8192 / Weight::kValues;
  static constexpr int kRounds = kUnits / kSparseThreads;  // in which a warp looks at its units, 32 at a time
  static constexpr int kMaxRows = 64 / Weight::kValues;    // of x in one pass
};

// The rows of x that a pass takes where there are M.
template <class Weight>
constexpr int pass_rows(int64_t M) {
  constexpr int kMax = SparseTile<Weight>::kMaxRows;
  const int rows = M <= 1 ? 1 : M <= 2 ? 2 : M <= 4 ? 4 : 8;
  return rows < kMax ? rows : kMax;
}

template <class Weight>
int64_t sparse_splits(int64_t F) {
  return F == 0 ? 1 : divide_up(F, SparseTile<Weight>::kUnits);  // bias and residual are added even to nothing
}

template <class Weight>
int64_t sparse_arrivals(int64_t M, int64_t C) {  // one for each column tile and pass
  return divide_up(C, SparseTile<Weight>::kColumns) * divide_up(M, pass_rows<Weight>(M));
}

// y of a column tile in rows first_m … first_m + kM - 1, from the sums of all splits.
template <class T, class Weight, int kM>
SIMT_DEVICE void add_splits(const SparseLinearParams& params, int64_t tile, int64_t first_m) {
  constexpr int kColumns = SparseTile<Weight>::kColumns, kOutputs = kColumns * kM / kSparseThreads;
  static_assert(kOutputs * kSparseThreads == kColumns * kM, "every thread has as many outputs");
  const auto row_of = [&](int i) { return first_m + (threadIdx.x + i * kSparseThreads) / kColumns; };
  const auto column_of = [&](int i) { return tile * kColumns + (threadIdx.x + i * kSparseThreads) % kColumns; };
  [[maybe_unused]] constexpr int kSplitsAtOnce = 16 / kOutputs;  // 16 loads in flight
  float sums[kOutputs] = {};
#pragma unroll kSplitsAtOnce
  for (int64_t split = 0; split < gridDim.y; ++split) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      if (row_of(i) >= params.M || column_of(i) >= params.C) continue;
      sums[i] += params.partials[(split * params.M + row_of(i)) * params.C + column_of(i)];
    }
  }
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int64_t m = row_of(i), n = column_of(i);
    if (m >= params.M || n >= params.C) continue;
    const float* const column_scale = Weight::kGroupScale ? nullptr : params.scale;
    static_cast<T*>(params.y)[m * params.C + n] = finished<T>(params, column_scale, sums[i], m, n, params.C);
  }
}

// Grid (column tiles x passes, splits). The passes of a tile are neighbours: they run at the same time, so what one has
// read of the weight the others find in the L2 cache.
template <class T, class Weight, int kM>
__global__ void __launch_bounds__(kSparseThreads, 2)
    sparse_linear_kernel(__grid_constant__ const SparseLinearParams params) {
  using Tile = SparseTile<Weight>;
  constexpr int kRowsInFlight = 4;
  SIMT_SHARED(int, listed_units, Tile::kUnits);
  SIMT_SHARED(float, listed_activations, Tile::kUnits* kM);
  SIMT_SHARED(int, warp_counts, kSparseWarps);
  SIMT_SHARED(float, warp_sums, kSparseWarps* Tile::kColumns);
  SIMT_SHARED(uint32_t, arrived_before, 1);
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  const unsigned passes = (static_cast<unsigned>(params.M) + kM - 1) / kM, tile = blockIdx.x / passes;
  const int64_t first_m = int64_t{blockIdx.x % passes} * kM;
  const T* const x = static_cast<const T*>(params.x) + first_m * params.F;
  const uint16_t* const nonzeros = params.nonzeros.words;

  simt::let_successor_start();
  simt::wait_for_predecessors();

  // The list: units with work in ascending order, and their activations.
  const int64_t first_unit = int64_t{blockIdx.y} * Tile::kUnits + warp * Tile::kRounds * simt::kWarpSize;
  float activations[Tile::kRounds][kM];
  uint32_t masks[Tile::kRounds];
  int count = 0;
#pragma unroll
  for (int round = 0; round < Tile::kRounds; ++round) {
    const int64_t unit = first_unit + round * simt::kWarpSize + lane;
    bool known_zero = unit >= params.F;
    if (!known_zero && nonzeros != nullptr) known_zero = (nonzeros[unit / 16] >> unit % 16 & 1) == 0;
    bool listed = params.all_rows;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const bool inside = !known_zero && first_m + m < params.M;
      activations[round][m] = inside ? simt::to_float(x[m * params.F + unit]) : 0.0f;
      listed = listed || activations[round][m] != 0.0f;  // true for NaN
    }
    masks[round] = __ballot_sync(~0u, listed && unit < params.F);
    count += __popc(masks[round]);
  }
  if (lane == 0) warp_counts[warp] = count;
  __syncthreads();
  int place = 0, listed = 0;
#pragma unroll
  for (int i = 0; i < kSparseWarps; ++i) {
    if (i == warp) place = listed;
    listed += warp_counts[i];
  }
#pragma unroll
  for (int round = 0; round < Tile::kRounds; ++round) {
    const int entry = place + __popc(masks[round] & ((1u << lane) - 1u));
    if (masks[round] >> lane & 1u) {
      listed_units[entry] = static_cast<int>(first_unit) + round * simt::kWarpSize + lane;
#pragma unroll
      for (int m = 0; m < kM; ++m) listed_activations[entry * kM + m] = activations[round][m];
    }
    place += __popc(masks[round]);
  }
  __syncthreads();

  // The products: warp w takes entries w, w + kSparseWarps, ….
  const int vectors = static_cast<int>(params.C / Weight::kValues);  // of a row
  const int vector = static_cast<int>(tile) * simt::kWarpSize + lane;
  float sums[Weight::kValues][kM] = {};
  for (int first = warp; first < listed; first += kSparseWarps * kRowsInFlight) {
    uint4 packed[kRowsInFlight];
    float scale[kRowsInFlight];
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      const int entry = first + i * kSparseWarps;
      packed[i] = make_uint4(0, 0, 0, 0);
      scale[i] = 1.0f;
      if (entry >= listed || vector >= vectors) continue;
      const int64_t unit = listed_units[entry];
      packed[i] = simt::load16(static_cast<const char*>(params.weight) + (unit * vectors + vector) * 16);
      if constexpr (Weight::kGroupScale) scale[i] = params.scale[unit * (vectors / 2) + vector / 2];
    }
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      const int entry = first + i * kSparseWarps;
      if (entry >= listed) continue;
      float factors[kM];
#pragma unroll
      for (int m = 0; m < kM; ++m) factors[m] = listed_activations[entry * kM + m] * scale[i];
#pragma unroll
      for (int chunk = 0; chunk < Weight::kValues / kChunk; ++chunk) {
        float weights[kChunk];
        Weight::unpack(packed[i], chunk, weights);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            sums[chunk * kChunk + j][m] = fmaf(weights[j], factors[m], sums[chunk * kChunk + j][m]);
          }
        }
      }
    }
  }

  // The warps' sums are added in order, a row of x at a time.
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int i = 0; i < Weight::kValues; ++i) {
      warp_sums[warp * Tile::kColumns + i * simt::kWarpSize + lane] = sums[i][m];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < Tile::kColumns; i += kSparseThreads) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kSparseWarps; ++w) sum += warp_sums[w * Tile::kColumns + i];
      const int value = i / simt::kWarpSize, owner = static_cast<int>(tile) * simt::kWarpSize + i % simt::kWarpSize;
      const int64_t column = Weight::column(owner, value / kChunk) + value % kChunk;
      const int64_t row = int64_t{blockIdx.y} * params.M + first_m + m;
      if (owner < vectors && first_m + m < params.M) params.partials[row * params.C + column] = sum;
    }
    __syncthreads();
  }

  // The last block of the column tile and pass adds the splits.
  simt::fence_writes();
  __syncthreads();
  if (threadIdx.x == 0) {
    arrived_before[0] = simt::arrive(params.nonzeros.arrivals + blockIdx.x);
  }
  __syncthreads();
  if (arrived_before[0] + 1 != gridDim.y) return;
  simt::fence_reads();
  add_splits<T, Weight, kM>(params, tile, first_m);
}

template <class T, class Weight, int kM>
cudaError_t launch_sparse_tile(const SparseLinearParams& params, int64_t splits, cudaStream_t stream) {
  const int64_t tiles = divide_up(params.C, SparseTile<Weight>::kColumns), passes = divide_up(params.M, kM);
  if (params.M > INT32_MAX || tiles * passes > INT32_MAX || splits > kMaxGridYZ) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(tiles * passes), static_cast<unsigned>(splits));
  return simt::launch_dependent<sparse_linear_kernel<T, Weight, kM>>(grid, dim3(kSparseThreads), stream, params);
}

template <class T, class Weight>
cudaError_t launch_sparse_format(const SparseLinearParams& params, cudaStream_t stream) {
  constexpr int64_t kColumns = Weight::kGroupScale ? kInt4Group : Weight::kValues;
  constexpr int64_t kMaxSize = int64_t{1} << 30;  // hidden units and columns are counted in 32 bits
  const bool in_range = params.M >= 0 && params.C >= 0 && params.F >= 0 && params.C <= kMaxSize &&
                        params.F <= kMaxSize && params.C % kColumns == 0;
  if (!in_range || !is_aligned(params.weight)) return cudaErrorInvalidValue;
  if (params.M == 0 || params.C == 0) return cudaSuccess;
  if (params.nonzeros.arrivals == nullptr) return cudaErrorInvalidValue;
  const int64_t splits = sparse_splits<Weight>(params.F);
  const int rows = pass_rows<Weight>(params.M);
  if (rows == 1) return launch_sparse_tile<T, Weight, 1>(params, splits, stream);
  if (rows == 2) return launch_sparse_tile<T, Weight, 2>(params, splits, stream);
  if constexpr (SparseTile<Weight>::kMaxRows >= 4) {
    if (rows == 4) return launch_sparse_tile<T, Weight, 4>(params, splits, stream);
  }
  if constexpr (SparseTile<Weight>::kMaxRows >= 8) return launch_sparse_tile<T, Weight, 8>(params, splits, stream);
  return cudaErrorInvalidValue;
}

}  // namespace persimmon::cuda
