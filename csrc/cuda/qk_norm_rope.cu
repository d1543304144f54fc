#include "head_rows.cuh"
#include "plan.cuh"
#include "qk_norm_rope.cuh"

namespace persimmon::cuda {
namespace {

// About 50 registers: 1024 threads a multiprocessor, or more, each with a 16-byte load in flight.
constexpr int kThreads = 256;

// A group of lanes takes a row of qkv, rows in the order of memory, so a warp reads 512 contiguous bytes. The warp's
// rows may be of q, k and v: all its lanes compute a norm and a rotation, and those of v store what they have loaded.
// Occupancy: qk_norm_rope 256 threads x 4 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kThreads) qk_norm_rope(__grid_constant__ const QkNormRopeParams params) {
  using Row = HeadRow<T>;
  const int lane = threadIdx.x % Row::kLanes;
  const int64_t rows = params.in.B * params.in.T * params.in.H * 3;
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / Row::kLanes;
  const int64_t inside = row < rows ? row : rows - 1;  // lanes past the end compute the last row and store nothing
  const int part = static_cast<int>(inside % 3);       // 0 q, 1 k, 2 v
  const int64_t h = inside / 3 % params.in.H, token = inside / 3 / params.in.H;
  const int64_t t = token % params.in.T, b = token / params.in.T;

  const uint4 loaded = simt::load16(static_cast<const T*>(params.in.qkv) + inside * kHeadDim + lane * Row::kWidth);
  float x[Row::kWidth];
  simt::unpack_vector<T>(loaded, x);
  head_norm<T>(x, static_cast<const T*>(part == 0 ? params.in.q_weight : params.in.k_weight),
               static_cast<const T*>(part == 0 ? params.in.q_bias : params.in.k_bias), lane, params.in.eps);
  const int64_t angle = b * params.in.angle_batch_stride + t * (kRotaryDim / 2);
  head_rotate<T>(x, params.in.cos + angle, params.in.sin + angle, lane, 1.0f);

  if (row >= rows) return;
  T* out = static_cast<T*>(params.q) + ((b * params.in.H + h) * params.in.T + t) * kHeadDim;
  if (part != 0) {
    const int64_t slot = params.slots == nullptr ? t : params.slots[token];
    if (slot < 0 || slot >= params.cache_rows) return;
    const HeadRowsOut& place = part == 1 ? params.k : params.v;
    out = static_cast<T*>(place.data) + b * place.batch_stride + h * place.head_stride + slot * place.row_stride;
  }
  simt::store16(out + lane * Row::kWidth, part == 2 ? loaded : simt::pack_vector<T>(x));
}

}  // namespace

cudaError_t launch_qk_norm_rope(const QkNormRopeParams& params, simt::Dtype dtype, cudaStream_t stream) {
  const int element_bytes = simt::element_bytes(dtype);
  const bool valid = is_valid(params.in) && is_aligned(params.q) &&
                     rows_start_at_multiples_of(16, params.k, element_bytes) &&
                     rows_start_at_multiples_of(16, params.v, element_bytes);
  if (!valid) return cudaErrorInvalidValue;
  const int64_t rows = params.in.B * params.in.T * params.in.H * 3;
  if (rows == 0) return cudaSuccess;
  return simt::with_element_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const int64_t blocks = divide_up(rows, kThreads / HeadRow<T>::kLanes);
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    return simt::launch(qk_norm_rope<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, params);
  });
}

}  // namespace persimmon::cuda
