#include "attention_backward.cuh"
#include "attention_range.cuh"
#include "attention_tiles.cuh"

namespace persimmon::cuda {
namespace {

// Blocks of 4 warps own 64 rows (keys or queries), a warp 16 of them, and walk over tiles of 64 of the others, two of
// which lie in shared memory. dk and dv together take 64 registers, scores and their gradients 64, the owned rows 32.

// Occupancy: attention_backward_keys 128 threads x 2 blocks, 50176 B
// Occupancy: attention_backward_queries 128 threads x 2 blocks, 49152 B
// Occupancy: attention_delta 128 threads x 16 blocks, 0 B
constexpr int kTile = 64;
constexpr int kStages = 2;
constexpr int kWarpRows = 16;
constexpr int kTileWords = kTile * kHeadDim / 2;
constexpr size_t kTileBytes = kTileWords * 4;
constexpr int kBlocksPerProcessor = 2;  // by registers; a third block would spill
constexpr int kDeltaThreads = 128;

using Scores = Result<1, kTile>;
using Rows = Result<1, kHeadDim>;

// Query rows first, one row of 64 elements for 8 threads.
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    attention_delta(__grid_constant__ const AttentionBackwardParams params) {
  constexpr int kRows = kDeltaThreads / kChunks;
  const int batch = blockIdx.z, head = blockIdx.y, chunk = threadIdx.x % kChunks;
  const int query = static_cast<int>(blockIdx.x) * kRows + threadIdx.x / kChunks;
  float sum = 0.0f;
  if (query < params.queries) {
    const auto out = head_rows<T>(params.out, batch, head), dout = head_rows<T>(params.dout, batch, head);
    float a[kChunkElements], b[kChunkElements];
    simt::unpack_vector<T>(simt::load16(out.data + query * out.stride + chunk * kChunkElements), a);
    simt::unpack_vector<T>(simt::load16(dout.data + query * dout.stride + chunk * kChunkElements), b);
#pragma unroll
    for (int i = 0; i < kChunkElements; ++i) sum += a[i] * b[i];
  }
#pragma unroll
  for (int offset = kChunks / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (query < params.queries && chunk == 0) {
    params.delta[(int64_t{batch} * params.heads + head) * params.queries + query] = sum;
  }
}

// Grid (tiles of keys, H, B), block kTileThreads. Rows of the products are keys, columns are queries.
template <class T>
__global__ void __launch_bounds__(kTileThreads, kBlocksPerProcessor)
    attention_backward_keys(__grid_constant__ const AttentionBackwardParams params) {
  SIMT_DYNAMIC_SHARED(memory);
  const auto k_tile = simt::shared_region<uint32_t>(memory, 0, kTileWords, "k");
  const auto v_tile = simt::shared_region<uint32_t>(memory, kTileBytes, kTileWords, "v");
  const auto q_tiles = simt::shared_region<uint32_t>(memory, 2 * kTileBytes, kStages * kTileWords, "q");
  const auto dout_tiles =
      simt::shared_region<uint32_t>(memory, (2 + kStages) * kTileBytes, kStages * kTileWords, "dout");
  const auto statistics =  // log-sum-exps and deltas of a tile of queries
      simt::shared_region<float>(memory, (2 + 2 * kStages) * kTileBytes, kStages * 2 * kTile, "statistics");
  const int batch = blockIdx.z, head = blockIdx.y, first_key = static_cast<int>(blockIdx.x) * kTile;
  const int64_t head_number = int64_t{batch} * params.heads + head;
  const VisibleKeys visible = visible_keys(params.range, batch, params.queries, params.keys);
  const int keys_end = visible.end_of(params.queries - 1);
  const auto q = head_rows<T>(params.q, batch, head), dout = head_rows<T>(params.dout, batch, head);

  // The first query that sees the first key of the block; later keys are seen by later queries.
  const int first_query = max(0, max(first_key, visible.start) - visible.offset);
  const bool seen = first_key < keys_end && first_key + kTile > visible.start;
  const int first_tile = first_query / kTile;
  const int tiles_end = seen ? (params.queries + kTile - 1) / kTile : first_tile;

  const auto load_queries = [&](int tile) {
    const int stage = tile % kStages, row = tile * kTile + threadIdx.x % kTile;
    load_tile<kTile>(q_tiles + stage * kTileWords, q, tile * kTile, 0, params.queries);
    load_tile<kTile>(dout_tiles + stage * kTileWords, dout, tile * kTile, 0, params.queries);
    const float* const source = threadIdx.x < kTile ? params.lse : params.delta;
    const bool valid = row < params.queries;
    simt::cp_async4(statistics + (stage * 2 * kTile + threadIdx.x),
                    source + head_number * params.queries + (valid ? row : 0), valid);
  };
  load_tile<kTile>(k_tile, head_rows<T>(params.k, batch, head), first_key, visible.start, keys_end);
  load_tile<kTile>(v_tile, head_rows<T>(params.v, batch, head), first_key, visible.start, keys_end);
  if (first_tile < tiles_end) load_queries(first_tile);
  simt::cp_async_commit();

  const int lane = threadIdx.x % simt::kWarpSize, warp_row = threadIdx.x / simt::kWarpSize * kWarpRows;
  const float exponent_scale = params.scale * kLog2E;
  Left<1> keys, values;
  Rows dk = {}, dv = {};
  for (int tile = first_tile; tile < tiles_end; ++tile) {
    simt::cp_async_wait<0>();
    __syncthreads();  // the tile has landed, and every warp is done with the one before, whose place is now free
    if (tile + 1 < tiles_end) load_queries(tile + 1);
    simt::cp_async_commit();
    if (tile == first_tile) {
      load_left(keys, k_tile, warp_row);
      load_left(values, v_tile, warp_row);
    }
    const int stage = tile % kStages;
    const auto q_tile = q_tiles + stage * kTileWords, dout_tile = dout_tiles + stage * kTileWords;
    Scores weights = {}, gradients = {};
    multiply_by_rows<T, 1, kTile>(weights, keys, q_tile);
    multiply_by_rows<T, 1, kTile>(gradients, values, dout_tile);

    const bool all_seen = first_key >= visible.start && first_key + kTile <= visible.end_of(tile * kTile);
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + lane % 4 * 2 + i % 2;
        const int key = first_key + warp_row + i / 2 * 8 + lane / 4;
        const float lse = statistics[stage * 2 * kTile + column] * kLog2E;
        const float delta = statistics[stage * 2 * kTile + kTile + column];
        const float weight = simt::fast_exp2(weights[0][n][i] * exponent_scale - lse);
        const bool sees = all_seen || (key >= visible.start && key < visible.end_of(tile * kTile + column));
        weights[0][n][i] = sees ? weight : 0.0f;
        gradients[0][n][i] = sees ? weight * (gradients[0][n][i] - delta) : 0.0f;
      }
    }
    multiply_by_columns<T, 1, kTile>(dv, weights, dout_tile);
    multiply_by_columns<T, 1, kTile>(dk, gradients, q_tile);
  }
  simt::cp_async_wait<0>();
  __syncthreads();  // k and v have been read, or have landed where no query sees them; their places stage the results

  const float one[1][2] = {{1.0f, 1.0f}}, scale[1][2] = {{params.scale, params.scale}};
  const int64_t head_rows_before = head_number * params.keys * kHeadDim;
  store_rows<T, 1>(dk, scale, k_tile + chunk_at(warp_row, 0), static_cast<T*>(params.dk) + head_rows_before, kHeadDim,
                   first_key + warp_row, params.keys);
  store_rows<T, 1>(dv, one, v_tile + chunk_at(warp_row, 0), static_cast<T*>(params.dv) + head_rows_before, kHeadDim,
                   first_key + warp_row, params.keys);
}

// Grid (tiles of queries, H, B), block kTileThreads. Rows of the products are queries, columns are keys.
template <class T>
__global__ void __launch_bounds__(kTileThreads, kBlocksPerProcessor)
    attention_backward_queries(__grid_constant__ const AttentionBackwardParams params) {
  SIMT_DYNAMIC_SHARED(memory);
  const auto q_tile = simt::shared_region<uint32_t>(memory, 0, kTileWords, "q");
  const auto dout_tile = simt::shared_region<uint32_t>(memory, kTileBytes, kTileWords, "dout");
  const auto k_tiles = simt::shared_region<uint32_t>(memory, 2 * kTileBytes, kStages * kTileWords, "k");
  const auto v_tiles = simt::shared_region<uint32_t>(memory, (2 + kStages) * kTileBytes, kStages * kTileWords, "v");
  const int batch = blockIdx.z, head = blockIdx.y;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTile;  // the longest start first
  const int64_t head_number = int64_t{batch} * params.heads + head;
  const VisibleKeys visible = visible_keys(params.range, batch, params.queries, params.keys);
  const int keys_end = visible.end_of(min(first_query + kTile, params.queries) - 1);
  const int first_tile = visible.start / kTile;
  const int tiles_end = keys_end > visible.start ? (keys_end + kTile - 1) / kTile : first_tile;
  const auto k = head_rows<T>(params.k, batch, head), v = head_rows<T>(params.v, batch, head);

  const auto load_keys = [&](int tile) {
    const int stage = tile % kStages * kTileWords;
    load_tile<kTile>(k_tiles + stage, k, tile * kTile, visible.start, keys_end);
    load_tile<kTile>(v_tiles + stage, v, tile * kTile, visible.start, keys_end);
  };
  load_tile<kTile>(q_tile, head_rows<T>(params.q, batch, head), first_query, 0, params.queries);
  load_tile<kTile>(dout_tile, head_rows<T>(params.dout, batch, head), first_query, 0, params.queries);
  if (first_tile < tiles_end) load_keys(first_tile);
  simt::cp_async_commit();

  const int lane = threadIdx.x % simt::kWarpSize, warp_row = threadIdx.x / simt::kWarpSize * kWarpRows;
  float lse[2], delta[2];
  int row_end[2];  // of the keys that a row sees
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = first_query + warp_row + r * 8 + lane / 4;
    const int64_t row = head_number * params.queries + query;
    lse[r] = query < params.queries ? params.lse[row] * kLog2E : 0.0f;
    delta[r] = query < params.queries ? params.delta[row] : 0.0f;
    row_end[r] = visible.end_of(query);
  }
  const float exponent_scale = params.scale * kLog2E;
  Left<1> queries, gradients_out;
  Rows dq = {};
  for (int tile = first_tile; tile < tiles_end; ++tile) {
    simt::cp_async_wait<0>();
    __syncthreads();  // the tile has landed, and every warp is done with the one before, whose place is now free
    if (tile + 1 < tiles_end) load_keys(tile + 1);
    simt::cp_async_commit();
    if (tile == first_tile) {
      load_left(queries, q_tile, warp_row);
      load_left(gradients_out, dout_tile, warp_row);
    }
    const int stage = tile % kStages * kTileWords, first_key = tile * kTile;
    Scores weights = {}, gradients = {};
    multiply_by_rows<T, 1, kTile>(weights, queries, k_tiles + stage);
    multiply_by_rows<T, 1, kTile>(gradients, gradients_out, v_tiles + stage);

    const bool all_seen = first_key >= visible.start && first_key + kTile <= visible.end_of(first_query + warp_row);
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = simt::fast_exp2(weights[0][n][i] * exponent_scale - lse[i / 2]);
        const int key = first_key + n * 8 + lane % 4 * 2 + i % 2;
        const bool sees = all_seen || (key >= visible.start && key < row_end[i / 2]);
        gradients[0][n][i] = sees ? weight * (gradients[0][n][i] - delta[i / 2]) : 0.0f;
      }
    }
    multiply_by_columns<T, 1, kTile>(dq, gradients, k_tiles + stage);
  }
  simt::cp_async_wait<0>();
  __syncthreads();  // q has been read, or has landed where there was no key; its place now stages the result

  const float scale[1][2] = {{params.scale, params.scale}};
  store_rows<T, 1>(dq, scale, q_tile + chunk_at(warp_row, 0),
                   static_cast<T*>(params.dq) + head_number * params.queries * kHeadDim, kHeadDim,
                   first_query + warp_row, params.queries);
}

unsigned tiles_of(int rows, int tile) { return (static_cast<unsigned>(rows) + tile - 1) / tile; }

template <class T>
cudaError_t launch_kernels(const AttentionBackwardParams& params, cudaStream_t stream) {
  constexpr size_t kQueryBytes = (2 + 2 * kStages) * kTileBytes;
  constexpr size_t kKeyBytes = kQueryBytes + kStages * 2 * kTile * sizeof(float);
  const auto grid = [&](unsigned tiles) { return dim3(tiles, params.heads, params.batch); };
  const dim3 block(kTileThreads);
  cudaError_t error = cudaSuccess;
  if (params.queries > 0) {
    error = simt::launch(attention_delta<T>, grid(tiles_of(params.queries, kDeltaThreads / kChunks)),
                         dim3(kDeltaThreads), stream, params);
  }
  if (params.keys > 0 && error == cudaSuccess) {
    error = simt::launch_shared(attention_backward_keys<T>, grid(tiles_of(params.keys, kTile)), block, kKeyBytes,
                                stream, params);
  }
  if (params.queries > 0 && error == cudaSuccess) {
    error = simt::launch_shared(attention_backward_queries<T>, grid(tiles_of(params.queries, kTile)), block,
                                kQueryBytes, stream, params);
  }
  return error;
}

}  // namespace

cudaError_t launch_attention_backward(const AttentionBackwardParams& params, simt::Dtype dtype, cudaStream_t stream) {
  if (!is_valid_shape(params.batch, params.heads, params.queries, params.keys)) return cudaErrorInvalidValue;
  for (const AttentionTensor& tensor : {params.q, params.k, params.v, params.dout, params.out}) {
    if (!is_aligned(tensor)) return cudaErrorInvalidValue;
  }
  if (params.batch == 0 || params.heads == 0) return cudaSuccess;
  return simt::with_16bit_type(dtype,
                               [&](auto tag) { return launch_kernels<typename decltype(tag)::Type>(params, stream); });
}

}  // namespace persimmon::cuda
