#include "plan.cuh"
#include "split_sum.cuh"

namespace persimmon::cuda {
namespace {

constexpr int kColumns = simt::kWarpSize;
constexpr int kGroups = 8;
constexpr int kThreads = kColumns * kGroups;

// Block (kColumns, kGroups): group g adds splits g, g + kGroups, …; the groups' sums are added in order.
// Occupancy: split_sum 256 threads x 8 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kThreads) split_sum(__grid_constant__ const SplitSumParams params) {
  SIMT_SHARED(float, group_sums, kThreads);
  const int64_t outputs = params.M * params.N;
  const int64_t output = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  float sum = 0.0f;
  if (output < outputs) {
#pragma unroll 4
    for (int64_t s = threadIdx.y; s < params.splits; s += kGroups) sum += params.partials[s * outputs + output];
  }
  group_sums[threadIdx.y * kColumns + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || output >= outputs) return;
  for (int group = 1; group < kGroups; ++group) sum += group_sums[group * kColumns + threadIdx.x];
  const int64_t n = output % params.N;
  if (params.scale != nullptr) sum *= params.scale[n];
  if (params.bias != nullptr) sum += simt::to_float(static_cast<const T*>(params.bias)[n]);
  if (params.relu2) {
    sum = sum < 0.0f ? 0.0f : sum;
    sum *= sum;
  }
  if (params.residual != nullptr) sum += simt::to_float(static_cast<const T*>(params.residual)[output]);
  static_cast<T*>(params.y)[output] = simt::from_float<T>(sum);
}

}  // namespace

cudaError_t launch_split_sum(const SplitSumParams& params, simt::Dtype dtype, cudaStream_t stream) {
  if (params.splits < 0 || params.M < 0 || params.N < 0) return cudaErrorInvalidValue;
  const int64_t blocks = divide_up(params.M * params.N, kColumns);
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return simt::with_element_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return simt::launch(split_sum<T>, dim3(static_cast<unsigned>(blocks)), dim3(kColumns, kGroups), stream, params);
  });
}

}  // namespace persimmon::cuda
