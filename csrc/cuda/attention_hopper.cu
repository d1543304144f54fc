#include "attention_hopper.cuh"
#include "attention_range.cuh"
#include "attention_softmax.cuh"
#include "attention_tiles.cuh"

namespace persimmon::cuda {
namespace hopper {  // not unnamed: where kHopper is false most of it is unused, which nvcc would report

// Two warpgroups take 64 queries each; a third one has a thread that keeps two tiles of 128 keys on their way. While a
// warpgroup turns scores into probabilities, the tensor cores work on its product with v of the tile before, and on the
// other warpgroup's. The consumers take over the registers that the third does not need.

// Occupancy: attention_hopper 384 threads x 1 blocks, 81992 B
constexpr int kConsumers = 2;
constexpr int kGroupThreads = 128;
constexpr int kConsumerThreads = kConsumers * kGroupThreads;
constexpr int kThreads = kConsumerThreads + kGroupThreads;
constexpr int kConsumerWarps = kConsumerThreads / simt::kWarpSize;
constexpr int kQueryTile = 64 * kConsumers;
constexpr int kKeyTile = 128;
constexpr int kStages = 2;
constexpr int kTileWords = kKeyTile * kHeadDim / 2;
constexpr int kTileBytes = kTileWords * 4;  // of queries and of keys
constexpr size_t kSharedBytes = (1 + 2 * kStages) * kTileBytes + (1 + 4 * kStages) * sizeof(uint64_t);
static_assert(kQueryTile == kKeyTile, "one box of TMA serves q, k and v");
constexpr int kConsumerBarrier = 1;  // named barrier of all consumers

struct HopperParams {
  AttentionParams attention;
  simt::TensorMap q, k, v;
};

// The barriers of a ring of tiles: full when TMA has written a tile, empty when every consumer warp has read it.
struct Ring {
  simt::Shared<uint64_t> full, empty;

  SIMT_DEVICE static int stage(int n) { return n % kStages; }
  SIMT_DEVICE static int parity(int n) { return n / kStages % 2; }

  SIMT_DEVICE void init() const {
    for (int stage = 0; stage < kStages; ++stage) {
      simt::mbarrier_init(full + stage, 1);
      simt::mbarrier_init(empty + stage, kConsumerWarps);
    }
  }
  // The n-th use of the ring.
  SIMT_DEVICE void wait_full(int n) const { simt::mbarrier_wait(full + stage(n), parity(n)); }
  SIMT_DEVICE void release(int n) const {
    if (threadIdx.x % simt::kWarpSize == 0) simt::mbarrier_arrive(empty + stage(n));
  }
  SIMT_DEVICE void load(int n, simt::Shared<uint32_t> tiles, const simt::TensorMap& map, int row, int head,
                        int batch) const {
    simt::mbarrier_wait(empty + stage(n), parity(n) ^ 1);  // the first round does not wait
    simt::mbarrier_arrive_expect(full + stage(n), kTileBytes);
    simt::tma_load(tiles + stage(n) * kTileWords, map, full + stage(n), row, head, batch);
  }
};

// Rows of a tile outside [begin, end) become zeros: TMA brings what lies in the cache there, which may be NaN, and a
// probability of 0 would not hide it. All consumers do it together.
SIMT_DEVICE void clear_rows(simt::Shared<uint32_t> tile, int begin, int end) {
  for (int word = threadIdx.x; word < kTileWords; word += kConsumerThreads) {
    const int row = word / (kHeadDim / 2);
    if (row < begin || row >= end) tile[word] = 0u;
  }
  simt::fence_async_proxy();
  simt::named_barrier_sync(kConsumerBarrier, kConsumerThreads);
}

template <class T>
SIMT_DEVICE void issue_scores(Result<1, kKeyTile>& scores, simt::Shared<uint32_t> queries,
                              simt::Shared<uint32_t> keys) {
  const auto left = simt::swizzled_tile(queries), right = simt::swizzled_tile(keys);
  simt::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kHeadDim; k += 16) simt::wgmma_by_rows(T{}, scores[0], left, right, k, k > 0);
  simt::wgmma_commit();
}

template <class T>
SIMT_DEVICE void issue_output(Result<1, kHeadDim>& out, const uint32_t (&weights)[kKeyTile / 16][4],
                              simt::Shared<uint32_t> values) {
  const auto right = simt::swizzled_tile(values);
  simt::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kKeyTile / 16; ++k) simt::wgmma_by_columns(T{}, out[0], weights[k], right, k * 16);
  simt::wgmma_commit();
}

// Probabilities as a left operand of 16-bit pairs.
template <class T>
SIMT_DEVICE void round_weights(uint32_t (&weights)[kKeyTile / 16][4], const Result<1, kKeyTile>& scores) {
#pragma unroll
  for (int k = 0; k < kKeyTile / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float (&pair)[4] = scores[0][2 * k + i / 2];
      weights[k][i] = simt::pack2<T>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
    }
  }
}

template <class T>
SIMT_DEVICE void attention_block(const HopperParams& all) {
  constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;  // 504 a lane of the three groups, of 512
  constexpr int kWarpRows = 16;
  constexpr int kGroupBarrier = kConsumerBarrier + 1;  // plus the number of the warpgroup whose named barrier it is
  SIMT_DYNAMIC_SHARED(memory);
  const AttentionParams& params = all.attention;
  const auto q_tile = simt::shared_region<uint32_t>(memory, 0, kTileWords, "q");
  const auto k_tiles = simt::shared_region<uint32_t>(memory, kTileBytes, kStages * kTileWords, "k");
  const auto v_tiles = simt::shared_region<uint32_t>(memory, (1 + kStages) * kTileBytes, kStages * kTileWords, "v");
  const auto barriers =
      simt::shared_region<uint64_t>(memory, (1 + 2 * kStages) * kTileBytes, 1 + 4 * kStages, "barriers");
  const auto q_full = barriers;
  const Ring k_ring{barriers + 1, barriers + (1 + kStages)};
  const Ring v_ring{barriers + (1 + 2 * kStages), barriers + (1 + 3 * kStages)};
  if (threadIdx.x == 0) {
    simt::mbarrier_init(q_full, 1);
    k_ring.init();
    v_ring.init();
    simt::fence_mbarrier_init();
  }
  __syncthreads();

  const int batch = blockIdx.z, head = blockIdx.y;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueryTile;  // the longest start first
  const VisibleKeys visible = visible_keys(params.range, batch, params.queries, params.keys);
  const int keys_end = visible.end_of(min(first_query + kQueryTile, params.queries) - 1);
  const int first_tile = visible.start / kKeyTile;
  const int tiles = keys_end > visible.start ? (keys_end + kKeyTile - 1) / kKeyTile - first_tile : 0;
  const int group = threadIdx.x / kGroupThreads;

  if (group == kConsumers) {
    simt::release_registers<kProducerRegisters>();
    if (threadIdx.x != kConsumerThreads || tiles == 0) return;
    simt::mbarrier_arrive_expect(q_full, kTileBytes);
    simt::tma_load(q_tile, all.q, q_full, first_query, head, batch);
    for (int n = 0; n < tiles; ++n) {
      k_ring.load(n, k_tiles, all.k, (first_tile + n) * kKeyTile, head, batch);
      v_ring.load(n, v_tiles, all.v, (first_tile + n) * kKeyTile, head, batch);
    }
    return;
  }
  simt::take_registers<kConsumerRegisters>();

  const int warp_row = threadIdx.x / simt::kWarpSize * kWarpRows;  // in the block's tile of queries
  const auto group_queries = q_tile + group * 64 * (kHeadDim / 2);
  const float scale = softmax_scale(params.scale);
  Result<1, kKeyTile> scores;
  Result<1, kHeadDim> out = {};
  uint32_t weights[kKeyTile / 16][4];
  float row_max[1][2] = {{-INFINITY, -INFINITY}}, row_sum[1][2] = {}, correction[1][2];

  const auto softmax = [&](int n) {
    const int first_key = (first_tile + n) * kKeyTile;
    if (first_key < visible.start || first_key + kKeyTile > visible.end_of(first_query + warp_row)) {
      hide_keys<1, kKeyTile>(scores, first_key, visible, first_query + warp_row);
    }
    online_softmax<1, kKeyTile>(scores, row_max, row_sum, correction, scale * kLog2E);
  };
  if (tiles > 0) {
    simt::mbarrier_wait(q_full, 0);
    if (params.scale < 0.0f) {
      negate_rows<kWarpRows>(q_tile + chunk_at(warp_row, 0));
      simt::fence_async_proxy();
      simt::named_barrier_sync(kGroupBarrier + group, kGroupThreads);
    }
    k_ring.wait_full(0);
    issue_scores<T>(scores, group_queries, k_tiles);
    simt::wgmma_wait<0>();
    simt::wgmma_pin(scores[0]);
    k_ring.release(0);
    softmax(0);
    round_weights<T>(weights, scores);
  }
  const auto wait_for_values = [&](int n) {
    const auto v_tile = v_tiles + Ring::stage(n) * kTileWords;
    const int first_key = (first_tile + n) * kKeyTile;
    v_ring.wait_full(n);
    if (first_key < visible.start || first_key + kKeyTile > keys_end) {
      clear_rows(v_tile, visible.start - first_key, keys_end - first_key);
    }
    return v_tile;
  };
  // Tile n's weights are ready; their product with v runs beside the scores and the softmax of tile n + 1.
  for (int n = 0; n + 1 < tiles; ++n) {
    const auto v_tile = wait_for_values(n);
    k_ring.wait_full(n + 1);
    issue_scores<T>(scores, group_queries, k_tiles + Ring::stage(n + 1) * kTileWords);
    issue_output<T>(out, weights, v_tile);
    simt::wgmma_wait<1>();
    simt::wgmma_pin(scores[0]);
    k_ring.release(n + 1);
    softmax(n + 1);
    simt::wgmma_wait<0>();
    simt::wgmma_pin(out[0]);
    v_ring.release(n);
    rescale<1>(out, correction);
    round_weights<T>(weights, scores);
  }
  if (tiles > 0) {
    issue_output<T>(out, weights, wait_for_values(tiles - 1));
    simt::wgmma_wait<0>();
    simt::wgmma_pin(out[0]);
  }

  float inverse[1][2];
  finish_softmax<1>(row_max, row_sum, inverse, scale,
                    params.lse + (int64_t{batch} * params.heads + head) * params.queries, first_query + warp_row,
                    params.queries);
  simt::named_barrier_sync(kGroupBarrier + group, kGroupThreads);  // the group is done with its queries' place
  const int64_t row_stride = int64_t{params.heads} * kHeadDim;
  T* const head_out = static_cast<T*>(params.out) + int64_t{batch} * params.queries * row_stride + head * kHeadDim;
  store_rows<T, 1>(out, inverse, q_tile + chunk_at(warp_row, 0), head_out, row_stride, first_query + warp_row,
                   params.queries);
}

// Grid (tiles of queries, H, B), block kThreads. Empty where the instructions do not exist.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) attention_hopper(__grid_constant__ const HopperParams params) {
  if constexpr (simt::kHopper) attention_block<T>(params);
}

}  // namespace hopper

cudaError_t launch_attention_hopper(const AttentionParams& params, simt::Dtype dtype, cudaStream_t stream) {
  using namespace hopper;
  if (!is_valid_shape(params.batch, params.heads, params.queries, params.keys)) return cudaErrorInvalidValue;
  if (!is_aligned(params.q) || !is_aligned(params.k) || !is_aligned(params.v)) return cudaErrorInvalidValue;
  if (dtype == simt::Dtype::kFloat32) return cudaErrorInvalidValue;
  if (params.batch == 0 || params.heads == 0 || params.queries == 0) return cudaSuccess;
  if (params.keys == 0) return cudaErrorNotSupported;
  if (!simt::has_hopper_code<attention_hopper<simt::bf16>>()) return cudaErrorNotSupported;
  HopperParams all{params, {}, {}, {}};
  const auto map = [&](simt::TensorMap& target, const AttentionTensor& tensor, int rows) {
    return simt::make_tensor_map(&target, dtype, tensor.data, rows, params.heads, params.batch, tensor.row_stride,
                                 tensor.head_stride, tensor.batch_stride, kKeyTile);
  };
  if (!map(all.q, params.q, params.queries) || !map(all.k, params.k, params.keys) || !map(all.v, params.v, params.keys))
    return cudaErrorNotSupported;
  const dim3 grid((static_cast<unsigned>(params.queries) + kQueryTile - 1) / kQueryTile, params.heads, params.batch);
  return simt::with_16bit_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return simt::launch_shared(attention_hopper<T>, grid, dim3(kThreads), kSharedBytes, stream, all);
  });
}

}  // namespace persimmon::cuda
