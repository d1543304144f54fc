// The kernel behind linear.cuh, for every weight format, and its launcher.
#pragma once
#include "linear.cuh"
#include "plan.cuh"
#include "product_epilogue.cuh"
#include "row_norms.cuh"
#include "weight_formats.cuh"

namespace persimmon::cuda {

constexpr int kLinearThreads = 256;
constexpr int kLinearWarps = kLinearThreads / simt::kWarpSize;
constexpr int kActivationVectors = 2048;  // 16-byte vectors of x in shared memory: 32 KB

// How a warp works for kM rows of x. It has kRows rows of the weight, and of each holds the next kVectors 16-byte
// vectors a lane: when it has taken one to multiply, it loads the one that takes its place. So a block has 16 KB in
// flight, 32 where a vector unpacks to the fewest values. Two blocks share a multiprocessor where that leaves enough
// registers for kRows * kM sums (twice that with scaled groups) and 8 * kRows unpacked weights.
template <class Weight, int kM>
struct LinearTile {
  static constexpr int kRows = Weight::kGroupScale && kM > 4 ? 2 : 4;  // scaled groups need a second set of sums
  static constexpr int kVectors = Weight::kValues == 8 && kM <= 2 ? 2 : 1;
  // Occupancy: linear_kernel<*, {PlainWeight,Int8Weight}*, {1,2,4,8}> 256 threads x 2 blocks, 0 B
  // Occupancy: linear_kernel<*, {PlainWeight,Int8Weight}*, 16> 256 threads x 1 blocks, 0 B
  // Occupancy: linear_kernel<*, Int4Weight, 1> 256 threads x 2 blocks, 0 B
  // Occupancy: linear_kernel<*, Int4Weight, {2,4,8,16}> 256 threads x 1 blocks, 0 B
  static constexpr int kMinBlocks = kM <= (Weight::kGroupScale ? 1 : 8) ? 2 : 1;
  static constexpr int kBlockRows = kRows * kLinearWarps;
  static constexpr int kStepVectors = simt::kWarpSize * kVectors;  // of a row
  static constexpr int kStepColumns = kStepVectors * Weight::kValues;
  static constexpr int kBlockChunks = kActivationVectors / kM;  // of a row of x in shared memory
  static constexpr int kBlockSteps = kBlockChunks * kChunk / kStepColumns;
  static_assert(kBlockSteps >= 1, "shared memory holds the activations of a step");
};

// Where chunk `chunk` of a row of x lies in shared memory, so that neighbouring lanes, whose chunks are 1, 2 or 2 and 6
// apart in the three formats, read from different banks.
SIMT_DEVICE int swizzled(int chunk) { return chunk ^ (chunk >> 3 & 1) ^ (chunk >> 2 & 4); }

// 16 bytes of each of a warp's rows, in one lane.
template <class Weight, int kM>
struct WeightVectors {
  uint4 packed[LinearTile<Weight, kM>::kRows];
  float scale[LinearTile<Weight, kM>::kRows];  // with kGroupScale
};

// Writes the words of the block's columns of y; bit r of warp_bits[w], written before a barrier, says whether row r of
// warp w's is not zero. Every thread calls it.
template <int kRows>
SIMT_DEVICE void write_nonzeros(const NonzeroList& list, simt::Shared<uint32_t> warp_bits, int64_t F) {
  constexpr int kWordWarps = 16 / kRows, kWords = kLinearWarps / kWordWarps;
  static_assert(kWords * kWordWarps == kLinearWarps, "a block has whole words");
  const int64_t word = int64_t{blockIdx.x} * kWords + threadIdx.x;
  if (threadIdx.x < kWords && word * 16 < F) {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kWordWarps; ++i) bits |= warp_bits[threadIdx.x * kWordWarps + i] << i * kRows;
    list.words[word] = static_cast<uint16_t>(bits);
  }
  if (blockIdx.x != 0) return;
  for (int64_t i = threadIdx.x; i < list.arrival_count; i += blockDim.x) list.arrivals[i] = 0;
}

// Block: kLinearThreads. A warp owns whole rows of the weight, so a sum is never split over warps.
template <class T, class Weight, int kM>
__global__ void __launch_bounds__(kLinearThreads, LinearTile<Weight, kM>::kMinBlocks)
    linear_kernel(__grid_constant__ const LinearParams params) {
  using Tile = LinearTile<Weight, kM>;
  constexpr int kRows = Tile::kRows, kVectors = Tile::kVectors;
  SIMT_SHARED(uint4, activations, kActivationVectors);  // [kM][kBlockChunks]
  SIMT_SHARED(float, partial_statistics, kM* kLinearWarps);
  SIMT_SHARED(float, statistics, kM * 2);  // of the rows of x: see row_norms.cuh
  SIMT_SHARED(uint32_t, warp_nonzeros, kLinearWarps);
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  const int64_t first_row = int64_t{blockIdx.x} * Tile::kBlockRows + warp * kRows;
  const int vectors = static_cast<int>(params.K / Weight::kValues);  // of a row
  const int steps = (vectors + Tile::kStepVectors - 1) / Tile::kStepVectors;
  const T* const x = static_cast<const T*>(params.x);
  const T* const norm_weight = static_cast<const T*>(params.norm_weight);
  const T* const norm_bias = static_cast<const T*>(params.norm_bias);

  WeightVectors<Weight, kM> held[kVectors];
  const auto load_weights = [&](int step, int i) {
    const int vector = step * Tile::kStepVectors + i * simt::kWarpSize + lane;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first_row + r;
      const bool inside = row < params.N && vector < vectors;
      const char* const bytes = static_cast<const char*>(params.weight) + (row * vectors + vector) * 16;
      held[i].packed[r] = inside ? simt::load16(bytes) : make_uint4(0, 0, 0, 0);
      if constexpr (Weight::kGroupScale) {  // two vectors a group
        held[i].scale[r] = inside ? params.scale[row * (vectors / 2) + vector / 2] : 0.0f;
      }
    }
  };
  const auto load_activations = [&](int64_t first_column) {
    for (int i = threadIdx.x; i < kM * Tile::kBlockChunks; i += kLinearThreads) {
      const int m = i / Tile::kBlockChunks, chunk = i % Tile::kBlockChunks;
      const int64_t column = first_column + chunk * kChunk;
      const bool inside = m < params.M && column < params.K;
      uint4 packed = inside ? simt::load16(x + m * params.K + column) : make_uint4(0, 0, 0, 0);
      if (inside && norm_weight != nullptr) {
        packed = normalised<T>(packed, simt::load16(norm_weight + column), simt::load16(norm_bias + column),
                               statistics[2 * m], statistics[2 * m + 1]);
      }
      activations[m * Tile::kBlockChunks + swizzled(chunk)] = packed;
    }
  };

  simt::let_successor_start();
  {  // 1 KB of each of the warp's rows, an eighth for a lane
    constexpr int kLine = 128, kLines = simt::kWarpSize / kRows;
    const int64_t row = first_row + lane / kLines, byte = lane % kLines * kLine;
    const int64_t row_bytes = int64_t{vectors} * 16;
    if (row < params.N && byte < row_bytes) {
      simt::prefetch_l2(static_cast<const char*>(params.weight) + row * row_bytes + byte);
    }
  }
  simt::wait_for_predecessors();

  float sums[kRows][kM] = {};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) load_weights(0, i);
  if (norm_weight != nullptr) {
    row_statistics<T, kM, kLinearThreads>(x, params.M, params.K, params.eps, partial_statistics, statistics);
  }
  for (int step = 0; step < steps; ++step) {
    const int block_step = step % Tile::kBlockSteps;
    if (block_step == 0) {
      __syncthreads();  // the readers of the block before, and the writers of the statistics
      load_activations(int64_t{step} * Tile::kStepColumns);
      __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const WeightVectors<Weight, kM> current = held[i];
      load_weights(step + 1, i);
      float group_sums[kRows][kM] = {};  // before the scale
      const int vector = block_step * Tile::kStepVectors + i * simt::kWarpSize + lane;
#pragma unroll
      for (int chunk = 0; chunk < Weight::kValues / kChunk; ++chunk) {
        float weights[kRows][kChunk];
#pragma unroll
        for (int r = 0; r < kRows; ++r) Weight::unpack(current.packed[r], chunk, weights[r]);
        const int place = swizzled(Weight::column(vector, chunk) / kChunk);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          float values[kChunk];
          simt::unpack_vector<T>(activations[m * Tile::kBlockChunks + place], values);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            float& sum = Weight::kGroupScale ? group_sums[r][m] : sums[r][m];
#pragma unroll
            for (int j = 0; j < kChunk; ++j) sum = fmaf(weights[r][j], values[j], sum);
          }
        }
      }
      if constexpr (Weight::kGroupScale) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int m = 0; m < kM; ++m) sums[r][m] = fmaf(group_sums[r][m], current.scale[r], sums[r][m]);
        }
      }
    }
  }

  // Every lane gets every sum; lane i finishes outputs i, i + 32, … of the warp's kRows x kM.
  constexpr int kOutputs = (kRows * kM + simt::kWarpSize - 1) / simt::kWarpSize;
  float outputs[kOutputs] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int output = r * kM + m;
      const float sum = simt::warp_sum(sums[r][m]);
      if (lane == output % simt::kWarpSize) outputs[output / simt::kWarpSize] = sum;
    }
  }
  const bool lists = params.nonzeros.words != nullptr;
  uint32_t nonzero_rows = 0;  // of the warp's rows of the weight: bit r
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int output = i * simt::kWarpSize + lane, m = output % kM;
    const int64_t n = first_row + output / kM;
    bool nonzero = false;
    if (output < kRows * kM && n < params.N && m < params.M) {
      const float* const column_scale = Weight::kGroupScale ? nullptr : params.scale;
      const T rounded = finished<T>(params, column_scale, outputs[i], m, n, params.N);
      static_cast<T*>(params.y)[m * params.N + n] = rounded;
      nonzero = simt::to_float(rounded) != 0.0f;  // true for NaN
    }
    if (!lists) continue;
    const uint32_t nonzero_lanes = __ballot_sync(~0u, nonzero);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int first = r * kM - i * simt::kWarpSize;  // lane of the row's first output
      if (first < 0 || first >= simt::kWarpSize) continue;
      if (nonzero_lanes >> first & ((1u << kM) - 1u)) nonzero_rows |= 1u << r;
    }
  }
  if (lists) {
    if (lane == 0) warp_nonzeros[warp] = nonzero_rows;
    __syncthreads();
    write_nonzeros<kRows>(params.nonzeros, warp_nonzeros, params.N);
  }
}

template <class T, class Weight, int kM>
cudaError_t launch_linear_tile(const LinearParams& params, cudaStream_t stream) {
  const int64_t blocks = divide_up(params.N, LinearTile<Weight, kM>::kBlockRows);
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return simt::launch_dependent<linear_kernel<T, Weight, kM>>(dim3(static_cast<unsigned>(blocks)), dim3(kLinearThreads),
                                                              stream, params);
}

template <class T, class Weight>
cudaError_t launch_linear_format(const LinearParams& params, cudaStream_t stream) {
  constexpr int64_t kColumns = Weight::kGroupScale ? kInt4Group : Weight::kValues;
  constexpr int64_t kMaxColumns = int64_t{1} << 30;  // vectors of a row are counted in 32 bits
  const bool in_range = params.M >= 0 && params.M <= kFewRows && params.N >= 0 && params.K >= 0 &&
                        params.K <= kMaxColumns && params.K % kColumns == 0;
  if (!in_range || (params.norm_weight == nullptr) != (params.norm_bias == nullptr)) return cudaErrorInvalidValue;
  for (const void* address : {params.x, params.weight, params.norm_weight, params.norm_bias}) {
    if (!is_aligned(address)) return cudaErrorInvalidValue;
  }
  if (params.M == 0 || params.N == 0) return cudaSuccess;
  if (params.M == 1) return launch_linear_tile<T, Weight, 1>(params, stream);
  if (params.M == 2) return launch_linear_tile<T, Weight, 2>(params, stream);
  if (params.M <= 4) return launch_linear_tile<T, Weight, 4>(params, stream);
  if (params.M <= 8) return launch_linear_tile<T, Weight, 8>(params, stream);
  return launch_linear_tile<T, Weight, 16>(params, stream);
}

}  // namespace persimmon::cuda
