#include "cross_entropy.cuh"
#include "infinity.cuh"
#include "plan.cuh"

namespace persimmon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / simt::kWarpSize;

// What is subtracted before exp: an infinite maximum would turn the rest of its row into NaN.
SIMT_DEVICE float shift_of(float max) { return max == kMinusInfinity || max == -kMinusInfinity ? 0.0f : max; }

// A maximum and the sum of exp(logit - maximum), of a part of a row.
struct Part {
  float max, sum;
};
// Exact in what is empty: a part without logits has max -inf and sum 0.
SIMT_DEVICE Part joined(const Part& a, const Part& b) {
  const float max = a.max != a.max || a.max > b.max ? a.max : b.max, shift = shift_of(max);
  const float a_sum = a.sum == 0.0f ? 0.0f : a.sum * expf(shift_of(a.max) - shift);
  const float b_sum = b.sum == 0.0f ? 0.0f : b.sum * expf(shift_of(b.max) - shift);
  return {max, a_sum + b_sum};
}

// A block a row. Every thread keeps a part of its own, so that a logit is read once.
// Occupancy: cross_entropy 256 threads x 6 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy(__grid_constant__ const CrossEntropyParams params) {
  SIMT_SHARED(float, warp_maxima, kWarps);
  SIMT_SHARED(float, warp_sums, kWarps);
  const int64_t row = blockIdx.x;
  const T* const logits = static_cast<const T*>(params.logits) + row * params.columns;
  Part part{kMinusInfinity, 0.0f};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < params.columns; i += kThreads) {
    const float logit = simt::to_float(logits[i]);
    part = joined(part, {logit, shift_of(logit) == logit ? 1.0f : expf(logit)});  // not finite: 0, inf or NaN
  }
#pragma unroll
  for (int offset = simt::kWarpSize / 2; offset > 0; offset /= 2) {
    part = joined(part, {__shfl_xor_sync(~0u, part.max, offset), __shfl_xor_sync(~0u, part.sum, offset)});
  }
  const int warp = threadIdx.x / simt::kWarpSize;
  if (threadIdx.x % simt::kWarpSize == 0) {
    warp_maxima[warp] = part.max;
    warp_sums[warp] = part.sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  part = {params.max[row], params.sum[row]};  // of the tiles before
  for (int i = 0; i < kWarps; ++i) part = joined(part, {warp_maxima[i], warp_sums[i]});
  params.max[row] = part.max;
  params.sum[row] = part.sum;
  const int64_t column = params.labels[row] - params.first;
  if (column >= 0 && column < params.columns) params.target[row] = simt::to_float(logits[column]);
}

// A block a row.
// Occupancy: cross_entropy_backward 256 threads x 8 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward(__grid_constant__ const CrossEntropyBackwardParams params) {
  const int64_t row = blockIdx.x;
  T* const logits = static_cast<T*>(params.logits) + row * params.columns;
  const int64_t label = params.labels[row];
  const float lse = params.lse[row], dloss = params.dloss[row];
  const bool ignored = label == params.ignore_index;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < params.columns; i += kThreads) {
    const float probability = expf(simt::to_float(logits[i]) - lse);
    const float gradient = (probability - (params.first + i == label ? 1.0f : 0.0f)) * dloss;
    logits[i] = simt::from_float<T>(ignored ? 0.0f : gradient);
  }
}

}  // namespace

cudaError_t launch_cross_entropy(const CrossEntropyParams& params, simt::Dtype dtype, cudaStream_t stream) {
  if (params.rows < 0 || params.rows > INT32_MAX || params.columns < 0) return cudaErrorInvalidValue;
  if (params.rows == 0 || params.columns == 0) return cudaSuccess;
  return simt::with_element_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return simt::launch(cross_entropy<T>, dim3(static_cast<unsigned>(params.rows)), dim3(kThreads), stream, params);
  });
}

cudaError_t launch_cross_entropy_backward(const CrossEntropyBackwardParams& params, simt::Dtype dtype,
                                          cudaStream_t stream) {
  if (params.rows < 0 || params.rows > INT32_MAX || params.columns < 0) return cudaErrorInvalidValue;
  if (params.rows == 0 || params.columns == 0) return cudaSuccess;
  return simt::with_element_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const dim3 grid(static_cast<unsigned>(params.rows));
    return simt::launch(cross_entropy_backward<T>, grid, dim3(kThreads), stream, params);
  });
}

}  // namespace persimmon::cuda
