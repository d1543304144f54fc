// The kernel behind linear.cuh, for every weight format, and its launcher.
#pragma once
#include "linear.cuh"
#include "plan.cuh"
#include "weight_formats.cuh"

namespace persimmon::cuda {

constexpr int kLinearThreads = 256;
constexpr int kLinearWarps = kLinearThreads / simt::kWarpSize;
constexpr int kActivationVectors = 2048;  // 16-byte vectors of x in shared memory: 32 KB

// How a warp works for kM rows of x. It has kRows rows of the weight; in a step it takes kVectors 16-byte vectors a
// lane of each, having loaded them while it computed the step before: 64 bytes a thread (128 where they unpack to the
// fewest values), so a block has 16 or 32 KB in flight. Two blocks share a multiprocessor where kMinBlocks says so; the
// others need more than 128 registers on some target: kRows * kM sums (twice that with scaled groups), two steps'
// weights, 8 * kRows unpacked.
template <class Weight, int kM>
struct LinearTile {
  static constexpr int kRows = Weight::kGroupScale && kM > 4 ? 2 : 4;  // scaled groups need a second set of sums
  static constexpr int kVectors = Weight::kValues == 8 && kM <= 2 ? 2 : 1;
  static constexpr int kMinBlocks = kVectors == 1 && kM <= (Weight::kGroupScale ? 1 : 4) ? 2 : 1;
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

template <class Weight, int kM>
struct WeightStep {
  uint4 packed[LinearTile<Weight, kM>::kRows][LinearTile<Weight, kM>::kVectors];
  float scale[LinearTile<Weight, kM>::kRows][LinearTile<Weight, kM>::kVectors];  // with kGroupScale
};

// Block: kLinearThreads. A warp owns whole rows of the weight, so a sum is never split over warps.
template <class T, class Weight, int kM>
__global__ void __launch_bounds__(kLinearThreads, LinearTile<Weight, kM>::kMinBlocks)
    linear_kernel(__grid_constant__ const LinearParams params) {
  using Tile = LinearTile<Weight, kM>;
  constexpr int kRows = Tile::kRows, kVectors = Tile::kVectors;
  SIMT_SHARED(uint4, activations, kActivationVectors);  // [kM][kBlockChunks]
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  const int64_t first_row = int64_t{blockIdx.x} * Tile::kBlockRows + warp * kRows;
  const int vectors = static_cast<int>(params.K / Weight::kValues);  // of a row
  const int steps = (vectors + Tile::kStepVectors - 1) / Tile::kStepVectors;
  const T* const x = static_cast<const T*>(params.x);

  const auto load_weights = [&](int step, WeightStep<Weight, kM>& into) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first_row + r;
      const char* const bytes = static_cast<const char*>(params.weight) + row * vectors * 16;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int vector = step * Tile::kStepVectors + i * simt::kWarpSize + lane;
        const bool inside = row < params.N && vector < vectors;
        into.packed[r][i] = inside ? simt::load16(bytes + int64_t{vector} * 16) : make_uint4(0, 0, 0, 0);
        if constexpr (Weight::kGroupScale) {  // two vectors a group
          into.scale[r][i] = inside ? params.scale[row * (vectors / 2) + vector / 2] : 0.0f;
        }
      }
    }
  };
  const auto load_activations = [&](int64_t first_column) {
    for (int i = threadIdx.x; i < kM * Tile::kBlockChunks; i += kLinearThreads) {
      const int m = i / Tile::kBlockChunks, chunk = i % Tile::kBlockChunks;
      const int64_t column = first_column + chunk * kChunk;
      const bool inside = m < params.M && column < params.K;
      activations[m * Tile::kBlockChunks + swizzled(chunk)] =
          inside ? simt::load16(x + m * params.K + column) : make_uint4(0, 0, 0, 0);
    }
  };

  float sums[kRows][kM] = {};
  WeightStep<Weight, kM> next;
  load_weights(0, next);
  for (int step = 0; step < steps; ++step) {
    const int block_step = step % Tile::kBlockSteps;
    if (block_step == 0) {
      __syncthreads();  // the readers of the block before
      load_activations(int64_t{step} * Tile::kStepColumns);
      __syncthreads();
    }
    const WeightStep<Weight, kM> current = next;
    if (step + 1 < steps) load_weights(step + 1, next);

#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float group_sums[kRows][kM] = {};  // before the scale
      const int vector = block_step * Tile::kStepVectors + i * simt::kWarpSize + lane;
#pragma unroll
      for (int chunk = 0; chunk < Weight::kValues / kChunk; ++chunk) {
        float weights[kRows][kChunk];
#pragma unroll
        for (int r = 0; r < kRows; ++r) Weight::unpack(current.packed[r][i], chunk, weights[r]);
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
          for (int m = 0; m < kM; ++m) sums[r][m] = fmaf(group_sums[r][m], current.scale[r][i], sums[r][m]);
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
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int output = i * simt::kWarpSize + lane, m = output % kM;
    const int64_t n = first_row + output / kM;
    if (output >= kRows * kM || n >= params.N || m >= params.M) continue;
    float value = outputs[i];
    if (!Weight::kGroupScale && params.scale != nullptr) value *= params.scale[n];
    if (params.bias != nullptr) value += simt::to_float(static_cast<const T*>(params.bias)[n]);
    if (params.relu2) {
      value = value < 0.0f ? 0.0f : value;
      value *= value;
    }
    if (params.residual != nullptr) value += simt::to_float(static_cast<const T*>(params.residual)[m * params.N + n]);
    static_cast<T*>(params.y)[m * params.N + n] = simt::from_float<T>(value);
  }
}

template <class T, class Weight, int kM>
cudaError_t launch_linear_tile(const LinearParams& params, cudaStream_t stream) {
  const int64_t blocks = divide_up(params.N, LinearTile<Weight, kM>::kBlockRows);
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return simt::launch(linear_kernel<T, Weight, kM>, dim3(static_cast<unsigned>(blocks)), dim3(kLinearThreads), stream,
                      params);
}

template <class T, class Weight>
cudaError_t launch_linear_format(const LinearParams& params, cudaStream_t stream) {
  constexpr int64_t kColumns = Weight::kGroupScale ? kInt4Group : Weight::kValues;
  constexpr int64_t kMaxColumns = int64_t{1} << 30;  // vectors of a row are counted in 32 bits
  const bool in_range = params.M >= 0 && params.M <= kFewRows && params.N >= 0 && params.K >= 0 &&
                        params.K <= kMaxColumns && params.K % kColumns == 0;
  if (!in_range || !is_aligned(params.x) || !is_aligned(params.weight)) return cudaErrorInvalidValue;
  if (params.M == 0 || params.N == 0) return cudaSuccess;
  if (params.M == 1) return launch_linear_tile<T, Weight, 1>(params, stream);
  if (params.M == 2) return launch_linear_tile<T, Weight, 2>(params, stream);
  if (params.M <= 4) return launch_linear_tile<T, Weight, 4>(params, stream);
  if (params.M <= 8) return launch_linear_tile<T, Weight, 8>(params, stream);
  return launch_linear_tile<T, Weight, 16>(params, stream);
}

}  // namespace persimmon::cuda
