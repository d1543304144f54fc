#include "attention.cuh"
#include "attention_range.cuh"
#include "attention_tiles.cuh"

namespace persimmon::cuda {
namespace {

// A block of 4 warps takes 128 queries of a head, a warp 32 of them: each fragment of K and V that ldmatrix brings
// serves two products. Its sums and scores take 128 registers; two blocks share a multiprocessor, and one computes
// while the other waits. Occupancy: attention_forward 128 threads x 2 blocks, 49152 B
constexpr int kQueryTile = 128;
constexpr int kKeyTile = 64;
constexpr int kStages = 2;  // a tile of keys is copied while the one before is used
constexpr int kM = 2;       // times 16 queries of a warp
constexpr int kWarpRows = 16 * kM;
constexpr int kBlocksPerProcessor = 2;
constexpr int kTileWords = kKeyTile * kHeadDim / 2;
constexpr size_t kSharedBytes = (kQueryTile + 2 * kStages * kKeyTile) * kHeadDim * 2;

// Hides the scores of keys that a query does not see. Score (m, n, i) belongs to key `first_key` + 8 n + 2 t + i % 2
// and to the row 16 m + g + 8 (i / 2) of the warp, which sees the keys [start, first_end + row), but none from `end`
// on.
SIMT_DEVICE void hide_keys(Result<kM, kKeyTile>& scores, int first_key, int start, int first_end, int end) {
  const int lane = threadIdx.x % simt::kWarpSize;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row_end = min(end, first_end + m * 16 + r * 8 + lane / 4);
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = first_key + n * 8 + lane % 4 * 2 + i;
          if (key < start || key >= row_end) scores[m][n][2 * r + i] = -INFINITY;
        }
      }
    }
  }
}

// Scores become probabilities relative to the running maximum; what was summed before is brought to the new maximum.
// `scale` takes scores to powers of two.
SIMT_DEVICE void online_softmax(Result<kM, kKeyTile>& scores, Result<kM, kHeadDim>& out, float (&row_max)[kM][2],
                                float (&row_sum)[kM][2], float scale) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float maximum = row_max[m][r];
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
        maximum = fmaxf(maximum, fmaxf(scores[m][n][2 * r], scores[m][n][2 * r + 1]));
      }
      maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
      const float shift = maximum == -INFINITY ? 0.0f : maximum * scale;  // no key seen yet: all exponents are -inf
      const float correction = simt::fast_exp2(row_max[m][r] * scale - shift);
      row_max[m][r] = maximum;
      float sum = row_sum[m][r] * correction;
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          scores[m][n][i] = simt::fast_exp2(scores[m][n][i] * scale - shift);
          sum += scores[m][n][i];
        }
      }
      row_sum[m][r] = sum;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        out[m][n][2 * r] *= correction;
        out[m][n][2 * r + 1] *= correction;
      }
    }
  }
}

// Grid (tiles of queries, H, B), block kTileThreads.
template <class T>
__global__ void __launch_bounds__(kTileThreads, kBlocksPerProcessor)
    attention_forward(__grid_constant__ const AttentionParams params) {
  SIMT_DYNAMIC_SHARED(memory);
  const auto q_tile = simt::shared_region<uint32_t>(memory, 0, kQueryTile * kHeadDim / 2, "q");
  const auto k_tiles = simt::shared_region<uint32_t>(memory, kQueryTile * kHeadDim * 2, kStages * kTileWords, "k");
  const auto v_tiles = simt::shared_region<uint32_t>(memory, (kQueryTile + kStages * kKeyTile) * kHeadDim * 2,
                                                     kStages * kTileWords, "v");
  const int batch = blockIdx.z, head = blockIdx.y;
  // The last queries see the most keys: they start first, and the short ones fill the gaps at the end.
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueryTile;
  const VisibleKeys visible = visible_keys(params.range, batch, params.queries, params.keys);
  const auto q = head_rows<T>(params.q, batch, head);
  const auto k = head_rows<T>(params.k, batch, head);
  const auto v = head_rows<T>(params.v, batch, head);
  const int last_query = min(first_query + kQueryTile, params.queries) - 1;
  const int keys_end = visible.end_of(last_query);
  const int first_tile = visible.start / kKeyTile;
  const int tiles_end = keys_end > visible.start ? (keys_end + kKeyTile - 1) / kKeyTile : first_tile;

  const auto load_keys = [&](int tile) {
    const int stage = tile % kStages * kTileWords;
    load_tile<kKeyTile>(k_tiles + stage, k, tile * kKeyTile, visible.start, keys_end);
    load_tile<kKeyTile>(v_tiles + stage, v, tile * kKeyTile, visible.start, keys_end);
  };
  load_tile<kQueryTile>(q_tile, q, first_query, 0, params.queries);
  if (first_tile < tiles_end) load_keys(first_tile);
  simt::cp_async_commit();

  const int lane = threadIdx.x % simt::kWarpSize, warp_row = threadIdx.x / simt::kWarpSize * kWarpRows;
  const float scale = softmax_scale(params.scale);
  Result<kM, kHeadDim> out = {};
  float row_max[kM][2], row_sum[kM][2] = {};
#pragma unroll
  for (int m = 0; m < kM; ++m) row_max[m][0] = row_max[m][1] = -INFINITY;

  for (int tile = first_tile; tile < tiles_end; ++tile) {
    simt::cp_async_wait<0>();  // this tile has landed, for the copies of this thread
    __syncthreads();           // and for all; and every warp is done with the tile before, whose place is now free
    if (tile + 1 < tiles_end) load_keys(tile + 1);
    simt::cp_async_commit();
    if (tile == first_tile && params.scale < 0.0f) negate_rows<kWarpRows>(q_tile + chunk_at(warp_row, 0));
    Left<kM> queries;
    load_left(queries, q_tile, warp_row);  // again for every tile: kept, they would cost 32 registers
    const int stage = tile % kStages * kTileWords, first_key = tile * kKeyTile;
    Result<kM, kKeyTile> scores = {};
    multiply_by_rows<T, kM, kKeyTile>(scores, queries, k_tiles + stage);
    const int first_end = visible.end_of(first_query + warp_row);
    if (first_key < visible.start || first_key + kKeyTile > first_end) {
      hide_keys(scores, first_key, visible.start, visible.causal_end(first_query + warp_row), visible.end);
    }
    online_softmax(scores, out, row_max, row_sum, scale * kLog2E);
    multiply_by_columns<T, kM, kKeyTile>(out, scores, v_tiles + stage);
  }
  simt::cp_async_wait<0>();
  __syncthreads();  // q has been read, or has landed where there was no key; its place now stages the output

  float inverse[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = row_sum[m][r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      inverse[m][r] = sum == 0.0f ? 0.0f : 1.0f / sum;
      const int query = first_query + warp_row + m * 16 + r * 8 + lane / 4;
      if (lane % 4 == 0 && query < params.queries) {
        const int64_t row = (int64_t{batch} * params.heads + head) * params.queries + query;
        params.lse[row] = sum == 0.0f ? -INFINITY : row_max[m][r] * scale + logf(sum);
      }
    }
  }
  const int64_t row_stride = int64_t{params.heads} * kHeadDim;
  T* const head_out = static_cast<T*>(params.out) + int64_t{batch} * params.queries * row_stride + head * kHeadDim;
  store_rows<T, kM>(out, inverse, q_tile + chunk_at(warp_row, 0), head_out, row_stride, first_query + warp_row,
                    params.queries);
}

}  // namespace

cudaError_t launch_attention(const AttentionParams& params, simt::Dtype dtype, cudaStream_t stream) {
  if (!is_valid_shape(params.batch, params.heads, params.queries, params.keys)) return cudaErrorInvalidValue;
  if (!is_aligned(params.q) || !is_aligned(params.k) || !is_aligned(params.v)) return cudaErrorInvalidValue;
  if (params.batch == 0 || params.heads == 0 || params.queries == 0) return cudaSuccess;
  const unsigned tiles = (static_cast<unsigned>(params.queries) + kQueryTile - 1) / kQueryTile;
  const dim3 grid(tiles, params.heads, params.batch);
  return simt::with_16bit_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return simt::launch_shared(attention_forward<T>, grid, dim3(kTileThreads), kSharedBytes, stream, params);
  });
}

}  // namespace persimmon::cuda
