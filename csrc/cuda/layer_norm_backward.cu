#include "column_sum.cuh"
#include "layer_norm_backward.cuh"
#include "plan.cuh"
#include "row_sum.cuh"

namespace persimmon::cuda {
namespace {

// A thread holds 2 * kVectorsPerThread vectors and as many sums of each of its columns: with 16-bit elements 16 + 32
// registers, about 105 in all: two blocks of 256 threads (4096 columns) a multiprocessor, 32 KB in flight. 512 threads
// (4096 float32 or 8192 16-bit columns) fit at up to 128 registers.
constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / simt::kWarpSize;
constexpr int kVectorsPerThread = 2;
constexpr int kElementsPerThread = 8;
constexpr int kMinBlock = 128;          // teams of narrow rows share a block of at least this many threads
constexpr int64_t kMinRowsPerTeam = 4;  // below, writing the teams' sums would take longer than reading the rows
constexpr int64_t kMaxBlocks = 264;     // two for each of 132 multiprocessors; constant, as the order of sums is

// Sums over a row of (x - mean)^2, of u and of u * (x - mean).
struct RowSums {
  float squares, gradients, projected;
};
SIMT_DEVICE RowSums warp_sum(RowSums sums) {
  return {simt::warp_sum(sums.squares), simt::warp_sum(sums.gradients), simt::warp_sum(sums.projected)};
}

// What a row's elements need to become dx: dx = (u - mean_gradient - deviation * slope) * scale.
struct RowGradient {
  float scale, mean_gradient, slope;
};
SIMT_DEVICE RowGradient row_gradient(const RowSums& sums, float inverse_columns, float eps) {
  const float scale = rsqrtf(sums.squares * inverse_columns + eps);
  return {scale, sums.gradients * inverse_columns, sums.projected * inverse_columns * scale * scale};
}

template <class T>
SIMT_DEVICE void store_floats(float* out, const float (&values)[simt::kVectorWidth<T>]) {
#pragma unroll
  for (int j = 0; j < simt::kVectorWidth<T>; j += 4) {
    const float four[4] = {values[j], values[j + 1], values[j + 2], values[j + 3]};
    simt::store16(out + j, simt::pack_vector<float>(four));
  }
}

// Block (threads_per_row, teams_per_block).
// Occupancy: layer_norm_backward_vectorised 256 threads x 2 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    layer_norm_backward_vectorised(__grid_constant__ const LayerNormBackwardParams params) {
  SIMT_SHARED(float, partial_means, kMaxWarps);
  SIMT_SHARED(RowSums, partial_sums, kMaxWarps);
  constexpr int kWidth = simt::kVectorWidth<T>;
  const int vectors = static_cast<int>(params.columns / kWidth);
  const float inverse_columns = 1.0f / static_cast<float>(params.columns);

  uint4 weights[kVectorsPerThread];
#pragma unroll
  for (int i = 0; i < kVectorsPerThread; ++i) {
    const int vector = threadIdx.x + i * blockDim.x;
    const T* const weight = static_cast<const T*>(params.weight) + vector * kWidth;
    weights[i] = vector < vectors ? simt::load16(weight) : make_uint4(0, 0, 0, 0);
  }
  float dweight[kVectorsPerThread][kWidth] = {}, dbias[kVectorsPerThread][kWidth] = {};

  // The bound depends on the block only, so all its threads take part in every barrier.
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < params.rows;
       first += int64_t{gridDim.x} * blockDim.y) {
    const int64_t row = first + threadIdx.y;
    const int row_vectors = row < params.rows ? vectors : 0;
    const T* const x = static_cast<const T*>(params.x) + row * params.columns;
    const T* const grad = static_cast<const T*>(params.grad) + row * params.columns;
    T* const dx = static_cast<T*>(params.dx) + row * params.columns;

    uint4 xs[kVectorsPerThread], grads[kVectorsPerThread];
#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      const int vector = threadIdx.x + i * blockDim.x;
      const bool inside = vector < row_vectors;
      xs[i] = inside ? simt::load16(x + vector * kWidth) : make_uint4(0, 0, 0, 0);
      grads[i] = inside ? simt::load16(grad + vector * kWidth) : make_uint4(0, 0, 0, 0);
    }

    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      float values[kWidth];
      simt::unpack_vector<T>(xs[i], values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum += values[j];
    }
    const float mean = row_sum(sum, partial_means) * inverse_columns;

    RowSums sums{};
#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      if (static_cast<int>(threadIdx.x + i * blockDim.x) >= row_vectors) continue;
      float values[kWidth], dy[kWidth], w[kWidth];
      simt::unpack_vector<T>(xs[i], values);
      simt::unpack_vector<T>(grads[i], dy);
      simt::unpack_vector<T>(weights[i], w);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float deviation = values[j] - mean, u = dy[j] * w[j];
        sums.squares += deviation * deviation;
        sums.gradients += u;
        sums.projected += u * deviation;
      }
    }
    const auto [scale, mean_gradient, slope] = row_gradient(row_sum(sums, partial_sums), inverse_columns, params.eps);

#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      const int vector = threadIdx.x + i * blockDim.x;
      if (vector >= row_vectors) continue;
      float values[kWidth], dy[kWidth], w[kWidth];
      simt::unpack_vector<T>(xs[i], values);
      simt::unpack_vector<T>(grads[i], dy);
      simt::unpack_vector<T>(weights[i], w);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float deviation = values[j] - mean;
        dweight[i][j] += dy[j] * (deviation * scale);
        dbias[i][j] += dy[j];
        values[j] = (dy[j] * w[j] - mean_gradient - deviation * slope) * scale;
      }
      simt::store16(dx + vector * kWidth, simt::pack_vector<T>(values));
    }
  }

  float* const partial = params.partials + (int64_t{blockIdx.x} * blockDim.y + threadIdx.y) * 2 * params.columns;
#pragma unroll
  for (int i = 0; i < kVectorsPerThread; ++i) {
    const int vector = threadIdx.x + i * blockDim.x;
    if (vector >= vectors) continue;
    store_floats<T>(partial + vector * kWidth, dweight[i]);
    store_floats<T>(partial + params.columns + vector * kWidth, dbias[i]);
  }
}

// Any width and alignment, one team a block. The rows are read again for each of the steps, from the cache, and the
// sums live in `partials`, where a thread only ever touches its own columns.
// Occupancy: layer_norm_backward_elementwise 512 threads x 2 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    layer_norm_backward_elementwise(__grid_constant__ const LayerNormBackwardParams params) {
  SIMT_SHARED(float, partial_means, kMaxWarps);
  SIMT_SHARED(RowSums, partial_sums, kMaxWarps);
  const int64_t columns = params.columns;
  const float inverse_columns = 1.0f / static_cast<float>(columns);
  const T* const weight = static_cast<const T*>(params.weight);
  float* const dweight = params.partials + int64_t{blockIdx.x} * 2 * columns;
  float* const dbias = dweight + columns;
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) dweight[c] = dbias[c] = 0.0f;

  for (int64_t row = blockIdx.x; row < params.rows; row += gridDim.x) {
    const T* const x = static_cast<const T*>(params.x) + row * columns;
    const T* const grad = static_cast<const T*>(params.grad) + row * columns;
    T* const dx = static_cast<T*>(params.dx) + row * columns;

    float sum = 0.0f;
    for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) sum += simt::to_float(x[c]);
    const float mean = row_sum(sum, partial_means) * inverse_columns;

    RowSums sums{};
    for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
      const float deviation = simt::to_float(x[c]) - mean;
      const float u = simt::to_float(grad[c]) * simt::to_float(weight[c]);
      sums.squares += deviation * deviation;
      sums.gradients += u;
      sums.projected += u * deviation;
    }
    const auto [scale, mean_gradient, slope] = row_gradient(row_sum(sums, partial_sums), inverse_columns, params.eps);

    for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
      const float deviation = simt::to_float(x[c]) - mean, dy = simt::to_float(grad[c]);
      dweight[c] += dy * (deviation * scale);
      dbias[c] += dy;
      dx[c] = simt::from_float<T>((dy * simt::to_float(weight[c]) - mean_gradient - deviation * slope) * scale);
    }
  }
}

}  // namespace

LayerNormBackwardPlan plan_layer_norm_backward(const LayerNormBackwardParams& params, int element_bytes) {
  const int64_t vector_width = 16 / element_bytes;
  const bool aligned =
      is_aligned(params.grad) && is_aligned(params.x) && is_aligned(params.weight) && is_aligned(params.dx);
  const bool vectorised =
      aligned && params.columns % vector_width == 0 && params.columns <= vector_width * kVectorsPerThread * kMaxThreads;
  const int64_t columns_per_thread = vectorised ? vector_width * kVectorsPerThread : kElementsPerThread;
  const int64_t wanted = divide_up(divide_up(params.columns, columns_per_thread), simt::kWarpSize) * simt::kWarpSize;
  const int threads_per_row = wanted < kMaxThreads ? static_cast<int>(wanted) : kMaxThreads;
  const int teams_per_block = vectorised && threads_per_row < kMinBlock ? kMinBlock / threads_per_row : 1;
  const int64_t blocks = divide_up(params.rows, kMinRowsPerTeam * teams_per_block);
  return {vectorised, threads_per_row, teams_per_block, blocks < kMaxBlocks ? blocks : kMaxBlocks};
}

cudaError_t launch_layer_norm_backward(const LayerNormBackwardParams& params, simt::Dtype dtype, cudaStream_t stream) {
  if (params.rows < 0 || params.columns < 0) return cudaErrorInvalidValue;
  if (params.columns == 0) return cudaSuccess;
  const LayerNormBackwardPlan plan = plan_layer_norm_backward(params, simt::element_bytes(dtype));
  if (params.rows > 0) {
    const dim3 grid(static_cast<unsigned>(plan.blocks));
    const dim3 block(plan.threads_per_row, plan.teams_per_block);
    const cudaError_t error = simt::with_element_type(dtype, [&](auto tag) {
      using T = typename decltype(tag)::Type;
      const auto kernel = plan.vectorised ? layer_norm_backward_vectorised<T> : layer_norm_backward_elementwise<T>;
      return simt::launch(kernel, grid, block, stream, params);
    });
    if (error != cudaSuccess) return error;
  }
  const ColumnSumParams sums{params.partials, {params.dweight, params.dbias}, plan.teams(), params.columns, 2};
  return launch_column_sum(sums, dtype, stream);
}

}  // namespace persimmon::cuda
