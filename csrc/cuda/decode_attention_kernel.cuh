// The kernel behind decode_attention.cuh, for every format of the cache, and its launcher.
#pragma once
#include "cache_formats.cuh"
#include "decode_attention.cuh"
#include "head_rows.cuh"
#include "softmax_state.cuh"

namespace persimmon::cuda {

constexpr int kDecodeThreads = 128;
constexpr int kDecodeWarps = kDecodeThreads / simt::kWarpSize;
constexpr int kDecodeGroups = kDecodeThreads / kCacheLanes;  // one for q and one for k of each of 8 tokens
constexpr int kPartial = kHeadDim + 2;                       // of a token: sums, their total weight, and the top score
static_assert(kDecodeGroups == 2 * kMaxDecodeTokens, "a group norms a row");

// Keys of a group whose k and v are loaded before the first is used, and blocks that share a multiprocessor: with
// 16-bit rows 64, 48 and 16 KB are in flight there for up to two, four and eight tokens, with codes half of it.
template <int kTokens>
constexpr int kKeys = kTokens <= 4 ? 4 : 2;
// Occupancy: decode_attention_kernel<*, {1,2}> 128 threads x 4 blocks, 0 B
// Occupancy: decode_attention_kernel<*, 4> 128 threads x 3 blocks, 0 B
// Occupancy: decode_attention_kernel<*, 8> 128 threads x 2 blocks, 0 B
template <int kTokens>
constexpr int kMinBlocks = kTokens <= 2   ? 4
                           : kTokens <= 4 ? 3
                                          : 2;

SIMT_DEVICE int64_t clamped(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Adds kCount keys to the state of every token; `score_of(i, t, dot)` is the key's score, or -inf where t does not see
// it.
template <class T, class Row, int kTokens, int kCount, class ScoreOf>
SIMT_DEVICE void attend(const Row (&keys)[kCount], const Row (&values)[kCount], const uint4 (&queries)[kTokens],
                        SoftmaxState<kCacheWidth> (&states)[kTokens], const ScoreOf& score_of) {
  float k[kCount][kCacheWidth], v[kCount][kCacheWidth], v_scales[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    keys[i].unpack(k[i]);
    values[i].unpack(v[i]);
    v_scales[i] = values[i].scale();
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    float q[kCacheWidth], scores[kCount];
    simt::unpack_vector<T>(queries[t], q);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float dot = 0.0f;
#pragma unroll
      for (int j = 0; j < kCacheWidth; ++j) dot = fmaf(q[j], k[i][j], dot);
      scores[i] = score_of(i, t, head_sum<T>(dot) * keys[i].scale());
    }
    states[t].add(scores, v, v_scales);
  }
}

// Grid (splits, H, B). Every block norms and rotates q; the last split also has the new keys.
template <class T, class Row, int kTokens>
__global__ void __launch_bounds__(kDecodeThreads, kMinBlocks<kTokens>)
    decode_attention_kernel(__grid_constant__ const DecodeAttentionParams params) {
  SIMT_SHARED(uint4, shared_queries, kMaxDecodeTokens * kCacheLanes);
  SIMT_SHARED(Row, shared_keys, kMaxDecodeTokens * kCacheLanes);
  SIMT_SHARED(Row, shared_values, kMaxDecodeTokens * kCacheLanes);
  SIMT_SHARED(float, warp_partials, kDecodeWarps * kTokens * kPartial);
  simt::let_successor_start();
  simt::wait_for_predecessors();
  const int64_t split = blockIdx.x, splits = gridDim.x, h = blockIdx.y, b = blockIdx.z;
  const int lane = threadIdx.x % kCacheLanes, group = threadIdx.x / kCacheLanes;
  const int64_t first_slot = params.slots[b * params.in.T];  // the slots of a sequence are consecutive
  const int64_t start = params.start == nullptr ? 0 : clamped(params.start[b], 0, params.S);
  const float score_scale = params.scale * 1.44269504f;  // scores in units of log 2
  const CachedHead<Row> k_cache(params.k, params.k_scale, b, h), v_cache(params.v, params.v_scale, b, h);

  {
    const int token = group % kMaxDecodeTokens, part = group / kMaxDecodeTokens;  // 0 q, 1 k (and v)
    const bool inside = token < params.in.T;
    const int64_t row = b * params.in.T + (inside ? token : 0);
    const T* const in =
        static_cast<const T*>(params.in.qkv) + (row * params.in.H + h) * 3 * kHeadDim + lane * kCacheWidth;
    const uint4 value = simt::load16(in + 2 * kHeadDim);
    float x[kCacheWidth];
    simt::unpack_vector<T>(simt::load16(in + part * kHeadDim), x);
    head_norm<T>(x, static_cast<const T*>(part == 0 ? params.in.q_weight : params.in.k_weight),
                 static_cast<const T*>(part == 0 ? params.in.q_bias : params.in.k_bias), lane, params.in.eps);
    const int64_t angle = b * params.in.angle_batch_stride + (inside ? token : 0) * (kRotaryDim / 2);
    head_rotate<T>(x, params.in.cos + angle, params.in.sin + angle, lane, 1.0f);
    const uint4 packed = simt::pack_vector<T>(x);
    const int place = token * kCacheLanes + lane;
    if (part == 0) {  // for all lanes of a warp, or for none
      shared_queries[place] = packed;
    } else {
      const Row new_key = Row::of(packed), new_value = Row::of(value);
      shared_keys[place] = new_key;
      shared_values[place] = new_value;
      const int64_t slot = first_slot + token;
      if (inside && split == splits - 1 && slot >= 0 && slot < params.S) {
        k_cache.store(slot, lane, new_key);
        v_cache.store(slot, lane, new_value);
      }
    }
  }
  __syncthreads();
  uint4 queries[kTokens];
  SoftmaxState<kCacheWidth> states[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    queries[t] = shared_queries[t * kCacheLanes + lane];
    states[t].clear();
  }

  // The split's part of what was in the cache; neighbouring groups take neighbouring keys. The bound depends on the
  // block only: shuffles need all lanes of a warp.
  const int64_t cached = clamped(first_slot, start, params.S);
  const int64_t per_split =
      ((cached - start + splits - 1) / splits + kDecodeGroups - 1) / kDecodeGroups * kDecodeGroups;
  const int64_t begin = start + split * per_split;
  const int64_t end = begin + per_split < cached ? begin + per_split : cached;
  constexpr int kCount = kKeys<kTokens>;
  for (int64_t first = begin; first < end; first += kDecodeGroups * kCount) {
    Row keys[kCount], values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t key = first + i * kDecodeGroups + group;
      const bool inside = key < end;
      keys[i] = inside ? k_cache.load(key, lane) : Row{};
      values[i] = inside ? v_cache.load(key, lane) : Row{};
    }
    attend<T>(keys, values, queries, states, [&](int i, int, float dot) {
      return first + i * kDecodeGroups + group < end ? dot * score_scale : kMinusInfinity;
    });
  }
  if (split == splits - 1) {  // group j has new token j, which the tokens from j on see
    const int place = group % kMaxDecodeTokens * kCacheLanes + lane;
    const int64_t slot = first_slot + group;
    const bool exists = group < params.in.T && slot >= start && slot < params.S;
    const Row key = shared_keys[place], value = shared_values[place];
    const Row keys[1] = {exists ? key : Row{}}, values[1] = {exists ? value : Row{}};
    attend<T>(keys, values, queries, states,
              [&](int, int t, float dot) { return exists && t >= group ? dot * score_scale : kMinusInfinity; });
  }

  // The groups of a warp, then the warps, in a fixed order.
  const int warp = threadIdx.x / simt::kWarpSize;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int offset = kCacheLanes; offset < simt::kWarpSize; offset *= 2) states[t].add_lane(offset);
    const int place = (warp * kTokens + t) * kPartial;
    if (threadIdx.x % simt::kWarpSize >= kCacheLanes) continue;
#pragma unroll
    for (int j = 0; j < kCacheWidth; ++j) warp_partials[place + lane * kCacheWidth + j] = states[t].sums[j];
    if (lane == 0) warp_partials[place + kHeadDim] = states[t].total;
    if (lane == 0) warp_partials[place + kHeadDim + 1] = states[t].top;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kHeadDim; i += kDecodeThreads) {
    const int t = i / kHeadDim, d = i % kHeadDim;
    if (t >= params.in.T) continue;
    float top = kMinusInfinity, total = 0.0f, sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) top = fmaxf(top, warp_partials[(w * kTokens + t) * kPartial + kHeadDim + 1]);
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const int place = (w * kTokens + t) * kPartial;
      const float factor = softmax_rescale(warp_partials[place + kHeadDim + 1], top);
      total = fmaf(factor, warp_partials[place + kHeadDim], total);
      sum = fmaf(factor, warp_partials[place + d], sum);
    }
    if (splits == 1) {
      T* const out = static_cast<T*>(params.out) + ((b * params.in.T + t) * params.in.H + h) * kHeadDim;
      out[d] = simt::from_float<T>(total == 0.0f ? 0.0f : sum / total);
    } else {
      float* const partial = params.partials + (((b * params.in.H + h) * splits + split) * params.in.T + t) * kPartial;
      partial[d] = sum;
      if (d == 0) partial[kHeadDim] = total;
      if (d == 0) partial[kHeadDim + 1] = top;
    }
  }
}

// Whether sizes and addresses are what the kernels take, the caches aside.
bool is_valid(const DecodeAttentionParams& params);

// out from the partials of more than one split.
cudaError_t launch_combine_splits(const DecodeAttentionParams& params, int64_t splits, simt::Dtype dtype,
                                  cudaStream_t stream);

template <class T, class Row, int kTokens>
cudaError_t launch_tokens(const DecodeAttentionParams& params, dim3 grid, cudaStream_t stream) {
  return simt::launch_dependent<decode_attention_kernel<T, Row, kTokens>>(grid, dim3(kDecodeThreads), stream, params);
}

// For caches that hold a `Row`, known to be aligned for it.
template <template <class> class Row>
cudaError_t launch_decode_attention_format(const DecodeAttentionParams& params, simt::Dtype dtype,
                                           cudaStream_t stream) {
  if (!is_valid(params)) return cudaErrorInvalidValue;
  if (params.in.B == 0 || params.in.H == 0) return cudaSuccess;
  const int64_t splits = decode_attention_splits(params.in.B, params.in.H, params.S);
  const auto blocks = [](int64_t count) { return static_cast<unsigned>(count); };
  const dim3 grid(blocks(splits), blocks(params.in.H), blocks(params.in.B));
  const cudaError_t error = simt::with_16bit_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return params.in.T == 1   ? launch_tokens<T, Row<T>, 1>(params, grid, stream)
           : params.in.T == 2 ? launch_tokens<T, Row<T>, 2>(params, grid, stream)
           : params.in.T <= 4 ? launch_tokens<T, Row<T>, 4>(params, grid, stream)
                              : launch_tokens<T, Row<T>, 8>(params, grid, stream);
  });
  return error != cudaSuccess || splits == 1 ? error : launch_combine_splits(params, splits, dtype, stream);
}

}  // namespace persimmon::cuda
