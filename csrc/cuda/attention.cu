#include "attention.cuh"
#include "attention_range.cuh"
#include "attention_softmax.cuh"
#include "attention_tiles.cuh"

namespace persimmon::cuda {
namespace {

// A block of 4 warps takes 128 queries of a head, a warp 32 of them: each fragment of K and V that ldmatrix brings
// serves two products. Its sums and scores take 128 registers; two blocks share a multiprocessor, and one computes
// while the other waits.

// Occupancy: attention_forward 128 threads x 2 blocks, 49152 B
constexpr int kQueryTile = 128;
constexpr int kKeyTile = 64;
constexpr int kStages = 2;  // a tile of keys is copied while the one before is used
constexpr int kM = 2;       // times 16 queries of a warp
constexpr int kWarpRows = 16 * kM;
constexpr int kBlocksPerProcessor = 2;
constexpr int kTileWords = kKeyTile * kHeadDim / 2;
constexpr size_t kSharedBytes = (kQueryTile + 2 * kStages * kKeyTile) * kHeadDim * 2;

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

  const int warp_row = threadIdx.x / simt::kWarpSize * kWarpRows;
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
      hide_keys<kM, kKeyTile>(scores, first_key, visible, first_query + warp_row);
    }
    float correction[kM][2];
    online_softmax<kM, kKeyTile>(scores, row_max, row_sum, correction, scale * kLog2E);
    rescale<kM>(out, correction);
    multiply_by_columns<T, kM, kKeyTile>(out, scores, v_tiles + stage);
  }
  simt::cp_async_wait<0>();
  __syncthreads();  // q has been read, or has landed where there was no key; its place now stages the output

  float inverse[kM][2];
  finish_softmax<kM>(row_max, row_sum, inverse, scale,
                     params.lse + (int64_t{batch} * params.heads + head) * params.queries, first_query + warp_row,
                     params.queries);
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
