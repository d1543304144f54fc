#include "decode_attention.cuh"
#include "head_rows.cuh"
#include "plan.cuh"
#include "softmax_state.cuh"

namespace persimmon::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / simt::kWarpSize;
constexpr int kLanes = 8;                   // that share a row of 64 16-bit elements, 16 bytes each
constexpr int kWidth = 8;                   // elements of a lane
constexpr int kGroups = kThreads / kLanes;  // one for q and one for k of each of 8 tokens
constexpr int kPartial = kHeadDim + 2;      // of a token: sums, their total weight, and the top score
static_assert(kGroups == 2 * kMaxDecodeTokens, "a group norms a row");

// Keys of a group whose k and v are loaded before the first is used: 128 or 64 bytes a thread in flight. With 72
// registers for one token 7 blocks share a multiprocessor (112 KB in flight), with up to 115 for two 4 (64 KB), with up
// to 168 for four 3 (48 KB), with up to 255 for eight 2 (16 KB).
template <int kTokens>
constexpr int kKeys = kTokens <= 4 ? 4 : 2;

template <class T>
SIMT_DEVICE T* cache_row(const HeadRowsOut& cache, int64_t b, int64_t h, int64_t s) {
  return static_cast<T*>(cache.data) + b * cache.batch_stride + h * cache.head_stride + s * cache.row_stride;
}

SIMT_DEVICE int64_t clamped(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Adds kCount keys to the state of every token; `score_of(i, t, dot)` is the key's score, or -inf where t does not see
// it.
template <class T, int kTokens, int kCount, class ScoreOf>
SIMT_DEVICE void attend(const uint4 (&keys)[kCount], const uint4 (&values)[kCount], const uint4 (&queries)[kTokens],
                        SoftmaxState<kWidth> (&states)[kTokens], const ScoreOf& score_of) {
  float k[kCount][kWidth], v[kCount][kWidth];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    simt::unpack_vector<T>(keys[i], k[i]);
    simt::unpack_vector<T>(values[i], v[i]);
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    float q[kWidth], scores[kCount];
    simt::unpack_vector<T>(queries[t], q);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float dot = 0.0f;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) dot = fmaf(q[j], k[i][j], dot);
      scores[i] = score_of(i, t, head_sum<T>(dot));
    }
    states[t].add(scores, v);
  }
}

// Grid (splits, H, B). Every block norms and rotates q; the last split also has the new keys.
// Occupancy: decode_attention 128 threads x 2 blocks, 0 B
template <class T, int kTokens>
__global__ void __launch_bounds__(kThreads) decode_attention(__grid_constant__ const DecodeAttentionParams params) {
  SIMT_SHARED(uint4, shared_queries, kMaxDecodeTokens * kLanes);
  SIMT_SHARED(uint4, shared_keys, kMaxDecodeTokens * kLanes);
  SIMT_SHARED(uint4, shared_values, kMaxDecodeTokens * kLanes);
  SIMT_SHARED(float, warp_partials, kWarps * kTokens * kPartial);
  const int64_t split = blockIdx.x, splits = gridDim.x, h = blockIdx.y, b = blockIdx.z;
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const int64_t first_slot = params.slots[b * params.T];  // the slots of a sequence are consecutive
  const int64_t start = params.start == nullptr ? 0 : clamped(params.start[b], 0, params.S);
  const float score_scale = params.scale * 1.44269504f;  // scores in units of log 2

  {
    const int token = group % kMaxDecodeTokens, part = group / kMaxDecodeTokens;  // 0 q, 1 k (and v)
    const bool inside = token < params.T;
    const int64_t row = b * params.T + (inside ? token : 0);
    const T* const in = static_cast<const T*>(params.qkv) + (row * params.H + h) * 3 * kHeadDim + lane * kWidth;
    const uint4 value = simt::load16(in + 2 * kHeadDim);
    float x[kWidth];
    simt::unpack_vector<T>(simt::load16(in + part * kHeadDim), x);
    head_norm<T>(x, static_cast<const T*>(part == 0 ? params.q_weight : params.k_weight),
                 static_cast<const T*>(part == 0 ? params.q_bias : params.k_bias), lane, params.eps);
    const int64_t angle = b * params.angle_batch_stride + (inside ? token : 0) * (kRotaryDim / 2);
    head_rotate<T>(x, params.cos + angle, params.sin + angle, lane, 1.0f);
    const uint4 packed = simt::pack_vector<T>(x);
    const int place = token * kLanes + lane;
    if (part == 0) {
      shared_queries[place] = packed;
    } else {
      shared_keys[place] = packed;
      shared_values[place] = value;
      const int64_t slot = first_slot + token;
      if (inside && split == splits - 1 && slot >= 0 && slot < params.S) {
        simt::store16(cache_row<T>(params.k, b, h, slot) + lane * kWidth, packed);
        simt::store16(cache_row<T>(params.v, b, h, slot) + lane * kWidth, value);
      }
    }
  }
  __syncthreads();
  uint4 queries[kTokens];
  SoftmaxState<kWidth> states[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    queries[t] = shared_queries[t * kLanes + lane];
    states[t].clear();
  }

  // The split's part of what was in the cache; neighbouring groups take neighbouring keys. The bound depends on the
  // block only: shuffles need all lanes of a warp.
  const int64_t cached = clamped(first_slot, start, params.S);
  const int64_t per_split = ((cached - start + splits - 1) / splits + kGroups - 1) / kGroups * kGroups;
  const int64_t begin = start + split * per_split;
  const int64_t end = begin + per_split < cached ? begin + per_split : cached;
  const T* const k_rows = cache_row<T>(params.k, b, h, 0) + lane * kWidth;
  const T* const v_rows = cache_row<T>(params.v, b, h, 0) + lane * kWidth;
  constexpr int kCount = kKeys<kTokens>;
  for (int64_t first = begin; first < end; first += kGroups * kCount) {
    uint4 keys[kCount], values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t key = first + i * kGroups + group;
      const bool inside = key < end;
      keys[i] = inside ? simt::load16(k_rows + key * params.k.row_stride) : make_uint4(0, 0, 0, 0);
      values[i] = inside ? simt::load16(v_rows + key * params.v.row_stride) : make_uint4(0, 0, 0, 0);
    }
    attend<T>(keys, values, queries, states, [&](int i, int, float dot) {
      return first + i * kGroups + group < end ? dot * score_scale : kMinusInfinity;
    });
  }
  if (split == splits - 1) {  // group j has new token j, which the tokens from j on see
    const int place = group % kMaxDecodeTokens * kLanes + lane;
    const int64_t slot = first_slot + group;
    const bool exists = group < params.T && slot >= start && slot < params.S;
    const uint4 zero = make_uint4(0, 0, 0, 0), key = shared_keys[place], value = shared_values[place];
    const uint4 keys[1] = {exists ? key : zero}, values[1] = {exists ? value : zero};
    attend<T>(keys, values, queries, states,
              [&](int, int t, float dot) { return exists && t >= group ? dot * score_scale : kMinusInfinity; });
  }

  // The groups of a warp, then the warps, in a fixed order.
  const int warp = threadIdx.x / simt::kWarpSize;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int offset = kLanes; offset < simt::kWarpSize; offset *= 2) states[t].add_lane(offset);
    const int place = (warp * kTokens + t) * kPartial;
    if (threadIdx.x % simt::kWarpSize >= kLanes) continue;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) warp_partials[place + lane * kWidth + j] = states[t].sums[j];
    if (lane == 0) warp_partials[place + kHeadDim] = states[t].total;
    if (lane == 0) warp_partials[place + kHeadDim + 1] = states[t].top;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kHeadDim; i += kThreads) {
    const int t = i / kHeadDim, d = i % kHeadDim;
    if (t >= params.T) continue;
    float top = kMinusInfinity, total = 0.0f, sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, warp_partials[(w * kTokens + t) * kPartial + kHeadDim + 1]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const int place = (w * kTokens + t) * kPartial;
      const float factor = softmax_rescale(warp_partials[place + kHeadDim + 1], top);
      total = fmaf(factor, warp_partials[place + kHeadDim], total);
      sum = fmaf(factor, warp_partials[place + d], sum);
    }
    if (splits == 1) {
      T* const out = static_cast<T*>(params.out) + ((b * params.T + t) * params.H + h) * kHeadDim;
      out[d] = simt::from_float<T>(total == 0.0f ? 0.0f : sum / total);
    } else {
      float* const partial = params.partials + (((b * params.H + h) * splits + split) * params.T + t) * kPartial;
      partial[d] = sum;
      if (d == 0) partial[kHeadDim] = total;
      if (d == 0) partial[kHeadDim + 1] = top;
    }
  }
}

// Grid (H, B), a warp a token, two elements a lane.
// Occupancy: combine_splits 256 threads x 6 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(simt::kWarpSize* kMaxDecodeTokens)
    combine_splits(__grid_constant__ const DecodeAttentionParams params, int64_t splits) {
  const int64_t h = blockIdx.x, b = blockIdx.y, t = threadIdx.y;
  const float* const partials = params.partials + ((b * params.H + h) * splits * params.T + t) * kPartial;
  const int64_t stride = params.T * kPartial;
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
  T* const out = static_cast<T*>(params.out) + ((b * params.T + t) * params.H + h) * kHeadDim;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    out[i * simt::kWarpSize + threadIdx.x] = simt::from_float<T>(total == 0.0f ? 0.0f : sums[i] / total);
  }
}

template <class T>
cudaError_t launch_kernels(const DecodeAttentionParams& params, cudaStream_t stream) {
  const int64_t splits = decode_attention_splits(params.B, params.H, params.S);
  const auto blocks = [](int64_t count) { return static_cast<unsigned>(count); };
  const auto kernel = params.T == 1   ? decode_attention<T, 1>
                      : params.T == 2 ? decode_attention<T, 2>
                      : params.T <= 4 ? decode_attention<T, 4>
                                      : decode_attention<T, 8>;
  const dim3 grid(blocks(splits), blocks(params.H), blocks(params.B));
  const cudaError_t error = simt::launch(kernel, grid, dim3(kThreads), stream, params);
  if (error != cudaSuccess || splits == 1) return error;
  return simt::launch(combine_splits<T>, dim3(blocks(params.H), blocks(params.B)),
                      dim3(simt::kWarpSize, blocks(params.T)), stream, params, splits);
}

bool is_aligned_cache(const HeadRowsOut& cache) {
  return is_aligned(cache.data) && cache.batch_stride % kWidth == 0 && cache.head_stride % kWidth == 0 &&
         cache.row_stride % kWidth == 0;
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

cudaError_t launch_decode_attention(const DecodeAttentionParams& params, simt::Dtype dtype, cudaStream_t stream) {
  constexpr int64_t kMaxGridYZ = 65535;
  const bool in_range = params.B >= 0 && params.B <= kMaxGridYZ && params.H >= 0 && params.H <= kMaxGridYZ &&
                        params.T >= 1 && params.T <= kMaxDecodeTokens && params.S >= 0;
  if (!in_range) return cudaErrorInvalidValue;
  if (params.B == 0 || params.H == 0) return cudaSuccess;
  for (const void* address : {params.qkv, params.q_weight, params.q_bias, params.k_weight, params.k_bias,
                              static_cast<const void*>(params.cos), static_cast<const void*>(params.sin)}) {
    if (!is_aligned(address)) return cudaErrorInvalidValue;
  }
  if (!is_aligned_cache(params.k) || !is_aligned_cache(params.v)) return cudaErrorInvalidValue;
  switch (dtype) {
    case simt::Dtype::kBFloat16:
      return launch_kernels<simt::bf16>(params, stream);
    case simt::Dtype::kFloat16:
      return launch_kernels<simt::fp16>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace persimmon::cuda
