#include "decode_attention.cuh"
#include "decode_attention_kernel.cuh"
#include "plan.cuh"

namespace persimmon::cuda {
namespace {

// Grid (H, B), a warp a token, two elements a lane.
// Occupancy: combine_splits 256 threads x 6 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(simt::kWarpSize* kMaxDecodeTokens)
    combine_splits(__grid_constant__ const DecodeAttentionParams params, int64_t splits) {
  simt::let_successor_start();
  simt::wait_for_predecessors();
  const int64_t h = blockIdx.x, b = blockIdx.y, t = threadIdx.y;
  const float* const partials = params.partials + ((b * params.in.H + h) * splits * params.in.T + t) * kPartial;
  const int64_t stride = params.in.T * kPartial;
  float top = kMinusInfinity, total = 0.0f, sums[2] = {};
  for (int64_t s = 0; s < splits; ++s) top = fmaxf(top, partials[s * stride + kHeadDim + 1]);
#pragma unroll 4
  for (int64_t s = 0; s < splits; ++s) {
    const float* const partial = partials + s * stride;
    const float factor = softmax_rescale(partial[kHeadDim + 1], top);
    total = fmaf(factor, partial[kHeadDim], total);
#pragma unroll
    for (int i = 0; i < 2; ++i) sums[i] = fmaf(factor, partial[i * simt::kWarpSize + threadIdx.x], sums[i]);
  }
  T* const out = static_cast<T*>(params.out) + ((b * params.in.T + t) * params.in.H + h) * kHeadDim;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    out[i * simt::kWarpSize + threadIdx.x] = simt::from_float<T>(total == 0.0f ? 0.0f : sums[i] / total);
  }
}

template <class T>
cudaError_t launch_combine(const DecodeAttentionParams& params, int64_t splits, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.in.H), static_cast<unsigned>(params.in.B));
  return simt::launch_dependent<combine_splits<T>>(grid, dim3(simt::kWarpSize, static_cast<unsigned>(params.in.T)),
                                                   stream, params, splits);
}

}  // namespace

int64_t decode_attention_splits(int64_t B, int64_t H, int64_t S) {
  constexpr int64_t kBlocks = 528;   // four for each of 132 multiprocessors
  constexpr int64_t kMinRows = 128;  // two rounds of a block's loads
  constexpr int64_t kMaxSplits = 64;
  if (B * H == 0) return 1;
  const int64_t by_heads = divide_up(kBlocks, B * H), by_rows = S / kMinRows;
  const int64_t splits = by_heads < by_rows ? by_heads : by_rows;
  return splits < 1 ? 1 : splits < kMaxSplits ? splits : kMaxSplits;
}

bool is_valid(const DecodeAttentionParams& params) {
  return is_valid(params.in) && params.in.B <= kMaxGridYZ && params.in.H <= kMaxGridYZ && params.in.T >= 1 &&
         params.in.T <= kMaxDecodeTokens && params.S >= 0;
}

cudaError_t launch_combine_splits(const DecodeAttentionParams& params, int64_t splits, simt::Dtype dtype,
                                  cudaStream_t stream) {
  return simt::with_16bit_type(
      dtype, [&](auto tag) { return launch_combine<typename decltype(tag)::Type>(params, splits, stream); });
}

cudaError_t launch_decode_attention(const DecodeAttentionParams& params, simt::Dtype dtype, cudaStream_t stream) {
  const bool aligned = rows_start_at_multiples_of(16, params.k, 2) && rows_start_at_multiples_of(16, params.v, 2);
  return aligned ? launch_decode_attention_format<PlainRow>(params, dtype, stream) : cudaErrorInvalidValue;
}

}  // namespace persimmon::cuda
