#include "elements.cuh"
#include "plan.cuh"
#include "relu2.cuh"

namespace persimmon::cuda {
namespace {

// Loads of a thread before its first store: 64 KB in flight a multiprocessor forward (at 30 registers) and 96 KB
// backward (at 37).
constexpr int kThreads = 256;
constexpr int kLoads = 2;

// Grid (pieces of a row, rows). kWidth elements an access: 1, or as many as 16 bytes hold.
// Occupancy: relu2 256 threads x 5 blocks, 0 B
template <class T, int kWidth, bool kBackward>
__global__ void __launch_bounds__(kThreads) relu2(__grid_constant__ const Relu2Params params) {
  const T* const bias = static_cast<const T*>(params.bias);
  const int64_t first = (int64_t{blockIdx.x} * kThreads * kLoads + threadIdx.x) * kWidth;
  for (int64_t row = blockIdx.y; row < params.rows; row += gridDim.y) {
    const T* const x = static_cast<const T*>(params.x) + row * params.columns;
    const T* const grad = static_cast<const T*>(params.grad) + row * params.columns;
    T* const out = static_cast<T*>(params.out) + row * params.columns;
    Elements<T, kWidth> xs[kLoads], grads[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t column = first + i * kThreads * kWidth;
      if (column >= params.columns) continue;
      xs[i].load(x + column);
      if constexpr (kBackward) grads[i].load(grad + column);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t column = first + i * kThreads * kWidth;
      if (column >= params.columns) continue;
      float values[kWidth], dy[kWidth];
      xs[i].unpack(values);
      if (bias != nullptr) {
        Elements<T, kWidth> biases;
        float b[kWidth];
        biases.load(bias + column);
        biases.unpack(b);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[j] += b[j];
      }
      if constexpr (kBackward) grads[i].unpack(dy);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float u = values[j] < 0.0f ? 0.0f : values[j];
        values[j] = kBackward ? dy[j] * (u + u) : u * u;
      }
      Elements<T, kWidth> result;
      result.pack(values);
      result.store(out + column);
    }
  }
}

}  // namespace

cudaError_t launch_relu2(const Relu2Params& params, simt::Dtype dtype, cudaStream_t stream) {
  if (params.rows < 0 || params.columns < 0) return cudaErrorInvalidValue;
  if (params.rows == 0 || params.columns == 0) return cudaSuccess;
  return simt::with_element_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kWidth = simt::kVectorWidth<T>;
    const bool vectorised = params.columns % kWidth == 0 && is_aligned(params.grad) && is_aligned(params.x) &&
                            is_aligned(params.bias) && is_aligned(params.out);
    const int64_t pieces = divide_up(params.columns, int64_t{kThreads} * kLoads * (vectorised ? kWidth : 1));
    if (pieces > INT32_MAX) return cudaErrorInvalidValue;
    const dim3 grid(static_cast<unsigned>(pieces),
                    static_cast<unsigned>(params.rows < kMaxGridYZ ? params.rows : kMaxGridYZ));
    const auto forward = vectorised ? relu2<T, kWidth, false> : relu2<T, 1, false>;
    const auto backward = vectorised ? relu2<T, kWidth, true> : relu2<T, 1, true>;
    return simt::launch(params.grad == nullptr ? forward : backward, grid, dim3(kThreads), stream, params);
  });
}

}  // namespace persimmon::cuda
