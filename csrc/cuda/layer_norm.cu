#include "layer_norm.cuh"
#include "plan.cuh"
#include "row_sum.cuh"

namespace persimmon::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / simt::kWarpSize;
// 16-byte loads in flight per thread: a row of 4096 16-bit elements takes 128 threads, one of 16384 takes 512.
constexpr int kVectorsPerThread = 4;
constexpr int kElementsPerThread = 8;  // of the element-by-element kernel, before its loop goes round again
constexpr int kMinBlock = 128;         // narrow rows share a block of at least this many threads
// Further rows are reached by the kernels' own loop. A few times what any GPU holds at once.
constexpr int64_t kMaxBlocks = 16384;

// a + b, rounded to T element by element.
template <class T>
SIMT_DEVICE uint4 add_vectors(const uint4& a, const uint4& b) {
  float values[simt::kVectorWidth<T>], others[simt::kVectorWidth<T>];
  simt::unpack_vector<T>(a, values);
  simt::unpack_vector<T>(b, others);
#pragma unroll
  for (int j = 0; j < simt::kVectorWidth<T>; ++j) values[j] += others[j];
  return simt::pack_vector<T>(values);
}

// Block (threads_per_row, rows_per_block). The row stays in registers as the 16-byte words it was loaded in.
// Occupancy: layer_norm_vectorised 128 threads x 8 blocks, 0 B
template <class T, bool kAdd>
__global__ void __launch_bounds__(kMaxThreads) layer_norm_vectorised(__grid_constant__ const LayerNormParams params) {
  SIMT_SHARED(float, partial_sums, kMaxWarps);
  SIMT_SHARED(float, partial_squares, kMaxWarps);
  constexpr int kWidth = simt::kVectorWidth<T>;
  const int vectors = static_cast<int>(params.columns / kWidth);
  const float inverse_columns = 1.0f / static_cast<float>(params.columns);
  const T* const weight = static_cast<const T*>(params.weight);
  const T* const bias = static_cast<const T*>(params.bias);

  // The bound depends on the block only, so all its threads take part in every barrier.
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < params.rows;
       first += int64_t{gridDim.x} * blockDim.y) {
    const int64_t row = first + threadIdx.y;
    const int row_vectors = row < params.rows ? vectors : 0;
    const T* const x = static_cast<const T*>(params.x) + row * params.columns;
    T* const out = static_cast<T*>(params.out) + row * params.columns;

    uint4 packed[kVectorsPerThread];
#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      const int vector = threadIdx.x + i * blockDim.x;
      packed[i] = vector < row_vectors ? simt::load16(x + vector * kWidth) : make_uint4(0, 0, 0, 0);
    }
    if constexpr (kAdd) {
      const T* const residual = static_cast<const T*>(params.residual) + row * params.columns;
      T* const total = static_cast<T*>(params.sum) + row * params.columns;
#pragma unroll
      for (int i = 0; i < kVectorsPerThread; ++i) {
        const int vector = threadIdx.x + i * blockDim.x;
        if (vector >= row_vectors) continue;
        packed[i] = add_vectors<T>(packed[i], simt::load16(residual + vector * kWidth));
        simt::store16(total + vector * kWidth, packed[i]);
      }
    }

    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      float values[kWidth];
      simt::unpack_vector<T>(packed[i], values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum += values[j];
    }
    const float mean = row_sum(sum, partial_sums) * inverse_columns;

    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      if (static_cast<int>(threadIdx.x + i * blockDim.x) >= row_vectors) continue;
      float values[kWidth];
      simt::unpack_vector<T>(packed[i], values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) squares += (values[j] - mean) * (values[j] - mean);
    }
    const float scale = rsqrtf(row_sum(squares, partial_squares) * inverse_columns + params.eps);

#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      const int vector = threadIdx.x + i * blockDim.x;
      if (vector >= row_vectors) continue;
      float values[kWidth], weights[kWidth], biases[kWidth];
      simt::unpack_vector<T>(packed[i], values);
      simt::unpack_vector<T>(simt::load16(weight + vector * kWidth), weights);
      simt::unpack_vector<T>(simt::load16(bias + vector * kWidth), biases);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[j] = (values[j] - mean) * scale * weights[j] + biases[j];
      simt::store16(out + vector * kWidth, simt::pack_vector<T>(values));
    }
  }
}

// Any width and alignment. Same block shape; the row is read again for each of the three steps, from the cache.
// Occupancy: layer_norm_elementwise 1024 threads x 2 blocks, 0 B
template <class T, bool kAdd>
__global__ void __launch_bounds__(kMaxThreads) layer_norm_elementwise(__grid_constant__ const LayerNormParams params) {
  SIMT_SHARED(float, partial_sums, kMaxWarps);
  SIMT_SHARED(float, partial_squares, kMaxWarps);
  const float inverse_columns = 1.0f / static_cast<float>(params.columns);
  const T* const weight = static_cast<const T*>(params.weight);
  const T* const bias = static_cast<const T*>(params.bias);

  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < params.rows;
       first += int64_t{gridDim.x} * blockDim.y) {
    const int64_t row = first + threadIdx.y;
    const int64_t row_columns = row < params.rows ? params.columns : 0;
    const T* x = static_cast<const T*>(params.x) + row * params.columns;
    T* const out = static_cast<T*>(params.out) + row * params.columns;

    if constexpr (kAdd) {  // a thread reads back only what it has written itself
      const T* const residual = static_cast<const T*>(params.residual) + row * params.columns;
      T* const total = static_cast<T*>(params.sum) + row * params.columns;
      for (int64_t c = threadIdx.x; c < row_columns; c += blockDim.x) {
        total[c] = simt::from_float<T>(simt::to_float(x[c]) + simt::to_float(residual[c]));
      }
      x = total;
    }

    float sum = 0.0f;
    for (int64_t c = threadIdx.x; c < row_columns; c += blockDim.x) sum += simt::to_float(x[c]);
    const float mean = row_sum(sum, partial_sums) * inverse_columns;

    float squares = 0.0f;
    for (int64_t c = threadIdx.x; c < row_columns; c += blockDim.x) {
      const float deviation = simt::to_float(x[c]) - mean;
      squares += deviation * deviation;
    }
    const float scale = rsqrtf(row_sum(squares, partial_squares) * inverse_columns + params.eps);

    for (int64_t c = threadIdx.x; c < row_columns; c += blockDim.x) {
      const float normalised = (simt::to_float(x[c]) - mean) * scale;
      out[c] = simt::from_float<T>(normalised * simt::to_float(weight[c]) + simt::to_float(bias[c]));
    }
  }
}

}  // namespace

LayerNormPlan plan_layer_norm(const LayerNormParams& params, int element_bytes) {
  const int64_t vector_width = 16 / element_bytes;
  const bool aligned = is_aligned(params.x) && is_aligned(params.residual) && is_aligned(params.weight) &&
                       is_aligned(params.bias) && is_aligned(params.sum) && is_aligned(params.out);
  const bool vectorised =
      aligned && params.columns % vector_width == 0 && params.columns <= vector_width * kVectorsPerThread * kMaxThreads;
  const int64_t columns_per_thread = vectorised ? vector_width * kVectorsPerThread : kElementsPerThread;
  const int64_t wanted = divide_up(divide_up(params.columns, columns_per_thread), simt::kWarpSize) * simt::kWarpSize;
  const int threads_per_row = wanted < kMaxThreads ? static_cast<int>(wanted) : kMaxThreads;
  const int rows_per_block = threads_per_row < kMinBlock ? kMinBlock / threads_per_row : 1;
  const int64_t blocks = divide_up(params.rows, rows_per_block);
  return {vectorised, threads_per_row, rows_per_block, blocks < kMaxBlocks ? blocks : kMaxBlocks};
}

cudaError_t launch_layer_norm(const LayerNormParams& params, simt::Dtype dtype, cudaStream_t stream) {
  if (params.rows < 0 || params.columns < 0) return cudaErrorInvalidValue;
  if (params.rows == 0 || params.columns == 0) return cudaSuccess;
  const LayerNormPlan plan = plan_layer_norm(params, simt::element_bytes(dtype));
  const dim3 grid(static_cast<unsigned>(plan.blocks));
  const dim3 block(plan.threads_per_row, plan.rows_per_block);
  return simt::with_element_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const auto plain = plan.vectorised ? layer_norm_vectorised<T, false> : layer_norm_elementwise<T, false>;
    const auto adding = plan.vectorised ? layer_norm_vectorised<T, true> : layer_norm_elementwise<T, true>;
    return simt::launch(params.residual == nullptr ? plain : adding, grid, block, stream, params);
  });
}

}  // namespace persimmon::cuda
