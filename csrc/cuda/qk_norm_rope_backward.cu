#include "column_sum.cuh"
#include "head_rows.cuh"
#include "plan.cuh"
#include "qk_norm_rope_backward.cuh"

namespace persimmon::cuda {
namespace {

// About 120 registers: 2 blocks a multiprocessor, with five 16-byte loads of each thread in flight.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / simt::kWarpSize;
constexpr int64_t kMinHeadsPerGroup = 4;
constexpr int64_t kMaxBlocks = 528;  // four for each of 132 multiprocessors; constant, as the order of sums is

template <class T>
constexpr int kGroups = kThreads / HeadRow<T>::kLanes;  // of lanes, in a block

// x becomes dx; its terms of dweight and dbias are added.
template <class T>
SIMT_DEVICE void backward_row(typename HeadRow<T>::Values& x, typename HeadRow<T>::Values& grad, const T* weight,
                              const float* cos, const float* sin, int lane, float eps,
                              typename HeadRow<T>::Values& dweight, typename HeadRow<T>::Values& dbias) {
  constexpr int kWidth = HeadRow<T>::kWidth;
  head_rotate<T>(grad, cos, sin, lane, -1.0f);
  const auto [mean, scale] = head_statistics<T>(x, eps);
  float w[kWidth], sum_u = 0.0f, sum_uz = 0.0f;
  simt::unpack_vector<T>(simt::load16(weight + lane * kWidth), w);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    x[j] = (x[j] - mean) * scale;
    dweight[j] += grad[j] * x[j];
    dbias[j] += grad[j];
    grad[j] *= w[j];
    sum_u += grad[j];
    sum_uz += grad[j] * x[j];
  }
  const float mean_u = head_sum<T>(sum_u) / kHeadDim, mean_uz = head_sum<T>(sum_uz) / kHeadDim;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) x[j] = (grad[j] - mean_u - x[j] * mean_uz) * scale;
}

// A group of lanes takes heads (b, t, h): its rows of q, k and v, one after the other.
// Occupancy: qk_norm_rope_backward 256 threads x 2 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    qk_norm_rope_backward(__grid_constant__ const QkNormRopeBackwardParams params) {
  using Row = HeadRow<T>;
  constexpr int kWidth = Row::kWidth;
  SIMT_SHARED(float, warp_sums, kWarps * 4 * kHeadDim);
  const int lane = threadIdx.x % Row::kLanes;
  const int64_t heads = params.in.B * params.in.T * params.in.H;
  const int64_t groups = int64_t{gridDim.x} * kGroups<T>;
  float sums[4][kWidth] = {};  // of the lane's columns: dq_weight, dq_bias, dk_weight, dk_bias

  // The bound depends on the block only: shuffles need all lanes of a warp.
  for (int64_t first = int64_t{blockIdx.x} * kGroups<T>; first < heads; first += groups) {
    const int64_t head = first + threadIdx.x / Row::kLanes;
    const bool inside = head < heads;
    const int64_t row = inside ? head : heads - 1;
    const int64_t h = row % params.in.H, t = row / params.in.H % params.in.T, b = row / params.in.H / params.in.T;
    const int64_t in = row * 3 * kHeadDim + lane * kWidth;
    const int64_t grad = ((b * params.in.H + h) * params.in.T + t) * kHeadDim + lane * kWidth;
    const uint4 zero = make_uint4(0, 0, 0, 0);  // gradients of lanes past the end: they add nothing to the sums
    const uint4 packed_q = simt::load16(static_cast<const T*>(params.in.qkv) + in);
    const uint4 packed_k = simt::load16(static_cast<const T*>(params.in.qkv) + in + kHeadDim);
    const uint4 packed_dq = inside ? simt::load16(static_cast<const T*>(params.dq) + grad) : zero;
    const uint4 packed_dk = inside ? simt::load16(static_cast<const T*>(params.dk) + grad) : zero;
    const uint4 packed_dv = simt::load16(static_cast<const T*>(params.dv) + grad);

    const int64_t angle = b * params.in.angle_batch_stride + t * (kRotaryDim / 2);
    float x[kWidth], dy[kWidth];
    T* const out = static_cast<T*>(params.dqkv) + in;
    simt::unpack_vector<T>(packed_q, x);
    simt::unpack_vector<T>(packed_dq, dy);
    backward_row<T>(x, dy, static_cast<const T*>(params.in.q_weight), params.in.cos + angle, params.in.sin + angle,
                    lane, params.in.eps, sums[0], sums[1]);
    if (inside) simt::store16(out, simt::pack_vector<T>(x));
    simt::unpack_vector<T>(packed_k, x);
    simt::unpack_vector<T>(packed_dk, dy);
    backward_row<T>(x, dy, static_cast<const T*>(params.in.k_weight), params.in.cos + angle, params.in.sin + angle,
                    lane, params.in.eps, sums[2], sums[3]);
    if (inside) {
      simt::store16(out + kHeadDim, simt::pack_vector<T>(x));
      simt::store16(out + 2 * kHeadDim, packed_dv);
    }
  }

  const int warp = threadIdx.x / simt::kWarpSize;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      float sum = sums[i][j];  // over the groups of the warp
#pragma unroll
      for (int offset = Row::kLanes; offset < simt::kWarpSize; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
      const int column = i * kHeadDim + lane * kWidth + j;
      if (threadIdx.x % simt::kWarpSize < Row::kLanes) warp_sums[warp * 4 * kHeadDim + column] = sum;
    }
  }
  __syncthreads();
  static_assert(kThreads == 4 * kHeadDim, "a thread sums a column");
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += warp_sums[i * 4 * kHeadDim + threadIdx.x];
  params.partials[int64_t{blockIdx.x} * 4 * kHeadDim + threadIdx.x] = sum;
}

}  // namespace

int64_t qk_norm_rope_backward_blocks(int64_t heads, simt::Dtype dtype) {
  const int64_t lanes = kHeadDim * simt::element_bytes(dtype) / 16;
  const int64_t blocks = divide_up(heads, kMinHeadsPerGroup * (kThreads / lanes));
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

cudaError_t launch_qk_norm_rope_backward(const QkNormRopeBackwardParams& params, simt::Dtype dtype,
                                         cudaStream_t stream) {
  if (!is_valid(params.in)) return cudaErrorInvalidValue;
  for (const void* address : {params.dq, params.dk, params.dv, static_cast<const void*>(params.dqkv)}) {
    if (!is_aligned(address)) return cudaErrorInvalidValue;
  }
  const int64_t blocks = qk_norm_rope_backward_blocks(params.in.B * params.in.T * params.in.H, dtype);
  if (blocks > 0) {
    const cudaError_t error = simt::with_element_type(dtype, [&](auto tag) {
      using T = typename decltype(tag)::Type;
      return simt::launch(qk_norm_rope_backward<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream,
                          params);
    });
    if (error != cudaSuccess) return error;
  }
  const auto& out = params.dweights;
  return launch_column_sum({params.partials, {out[0], out[1], out[2], out[3]}, blocks, kHeadDim, 4}, dtype, stream);
}

}  // namespace persimmon::cuda
