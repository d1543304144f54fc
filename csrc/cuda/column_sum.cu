#include "column_sum.cuh"
#include "plan.cuh"

namespace persimmon::cuda {
namespace {

constexpr int kColumns = simt::kWarpSize;  // of a block: 128 contiguous bytes a warp
constexpr int kRowGroups = 16;             // 528 partial sums are 33 loads a thread
constexpr int kThreads = kColumns * kRowGroups;

// Block (kColumns, kRowGroups): group g sums rows g, g + kRowGroups, …; the groups' sums are added in order.
// Occupancy: column_sum 512 threads x 3 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kThreads) column_sum(__grid_constant__ const ColumnSumParams params) {
  SIMT_SHARED(float, group_sums, kThreads);
  const int64_t stride = params.outputs * params.columns;
  const int64_t column = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  float sum = 0.0f;
  if (column < stride) {
#pragma unroll 8
    for (int64_t row = threadIdx.y; row < params.rows; row += kRowGroups) sum += params.partials[row * stride + column];
  }
  group_sums[threadIdx.y * kColumns + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= stride) return;
  for (int group = 1; group < kRowGroups; ++group) sum += group_sums[group * kColumns + threadIdx.x];
  const int64_t first = column / params.columns;
#pragma unroll
  for (int i = 0; i < kMaxColumnSums; ++i) {  // an index known at compile time: no copy of the pointers on a stack
    if (i == first) static_cast<T*>(params.out[i])[column - i * params.columns] = simt::from_float<T>(sum);
  }
}

}  // namespace

cudaError_t launch_column_sum(const ColumnSumParams& params, simt::Dtype dtype, cudaStream_t stream) {
  const bool in_range =
      params.rows >= 0 && params.columns >= 0 && params.outputs >= 0 && params.outputs <= kMaxColumnSums;
  if (!in_range) return cudaErrorInvalidValue;
  const int64_t blocks = divide_up(params.outputs * params.columns, kColumns);
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return simt::with_element_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return simt::launch(column_sum<T>, dim3(static_cast<unsigned>(blocks)), dim3(kColumns, kRowGroups), stream, params);
  });
}

}  // namespace persimmon::cuda
