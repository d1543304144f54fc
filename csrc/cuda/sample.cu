#include "infinity.cuh"
#include "philox.cuh"
#include "plan.cuh"
#include "sample.cuh"
#include "sample_threshold.cuh"

namespace persimmon::cuda {
namespace {

constexpr int64_t kMaxBlocks = kSampleThreads;  // of a row: a thread each reads what the others have left

// A level of a filter: which histogram it fills, and what it adds for a token.
struct LevelParams {
  int index;         // of the histogram, in the row's
  int level;         // 0 … kSampleLevels - 1
  int64_t top_k;     // of this filter; 0: top_p
  float mass_scale;  // fixed point: mass 1 is this much
};

// Maximum of each block's part of a row, NaN for a NaN or +inf in it; and zeros in the histograms and arrivals.
// Occupancy: find_tops 256 threads x 8 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kSampleThreads)
    find_tops(__grid_constant__ const SampleParams params, int64_t histogram_words) {
  SIMT_SHARED(float, warp_tops, kSampleWarps);
  simt::let_successor_start();
  simt::wait_for_predecessors();
  const int64_t row = blockIdx.y, first = int64_t{blockIdx.x} * kSampleThreads + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * kSampleThreads;
  for (int64_t i = first; i < histogram_words; i += stride) params.histograms[row * histogram_words + i] = 0;
  if (first == 0) params.arrivals[row] = 0;
  float top = kMinusInfinity;
  for_each_token(static_cast<const T*>(params.logits) + row * params.V, params.V, [&](int64_t, float logit) {
    const bool bad = logit != logit || logit == -kMinusInfinity;
    if (bad || logit > top) top = bad ? __uint_as_float(0x7fc00000u) : logit;  // a NaN stays: nothing is above it
  });
  top = block_max(top, warp_tops);
  if (threadIdx.x == 0) params.block_tops[row * gridDim.x + blockIdx.x] = top;
}

// The row's maximum, for a block of any kernel after find_tops. Every thread calls it.
template <class Shared>
SIMT_DEVICE float row_top(const SampleParams& params, Shared& warp_tops) {
  const bool inside = threadIdx.x < gridDim.x;
  return block_max(inside ? params.block_tops[int64_t{blockIdx.y} * gridDim.x + threadIdx.x] : kMinusInfinity,
                   warp_tops);
}

// Fills the histogram of a level, having found the range that it divides in the histogram of the level before.
// Occupancy: fill_histogram 256 threads x 5 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kSampleThreads, 5)
    fill_histogram(__grid_constant__ const SampleParams params, __grid_constant__ const LevelParams level, int levels) {
  SIMT_SHARED(float, warp_tops, kSampleWarps);
  SIMT_SHARED(uint64_t, warp_sums, kSampleWarps);
  SIMT_SHARED(uint64_t, found, 2);
  SIMT_SHARED(uint32_t, low_words, kSampleBins);
  SIMT_SHARED(uint32_t, high_words, kSampleBins);
  simt::let_successor_start();
  simt::wait_for_predecessors();
  const int64_t row = blockIdx.y;
  uint64_t* const histogram = params.histograms + (row * levels + level.index) * kSampleBins;
  SampleRange* const ranges = params.ranges + row * levels;
  const BlockHistogram own{low_words, high_words, bin_count(level.level)};
  own.clear();  // the barrier of row_top ends that
  const float top = row_top(params, warp_tops);
  SampleRange range{0, static_cast<uint64_t>(level.top_k), 0, kInfinityBits};
  if (level.index > 0) {
    const int previous = (level.index - 1) % kSampleLevels;
    range = find_bin(histogram - kSampleBins, ranges[level.index - 1], previous, params.top_p, warp_sums, found);
    if (level.level == 0) range = {0, 0, 0, range.low};  // top_p's, behind a top_k that has ended at a single value
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) ranges[level.index] = range;

  for_each_token(static_cast<const T*>(params.logits) + row * params.V, params.V, [&](int64_t, float logit) {
    const uint32_t key = key_of(logit, top, params.temperature);
    if (key < range.low || key > range.high) return;
    const uint64_t weight = level.top_k > 0 ? 1 : static_cast<uint64_t>(expf(z_of(key)) * level.mass_scale);
    if (weight > 0) own.add((key - range.low) >> bin_shift(level.level), weight);
  });
  __syncthreads();
  own.add_to(histogram);
}

struct Candidate {
  double score;
  int64_t token;
};
// The higher score, the lower token of equal ones; a NaN never wins.
SIMT_DEVICE Candidate better(const Candidate& a, const Candidate& b) {
  return b.score > a.score || (b.score == a.score && b.token < a.token) ? b : a;
}
SIMT_DEVICE Candidate warp_best(Candidate best) {
#pragma unroll
  for (int offset = simt::kWarpSize / 2; offset > 0; offset /= 2) {
    best = better(best, {__shfl_xor_sync(~0u, best.score, offset), __shfl_xor_sync(~0u, best.token, offset)});
  }
  return best;
}

// The best of the block's, in thread 0. Every thread calls it.
template <class Scores, class Tokens>
SIMT_DEVICE Candidate block_best(Candidate best, Scores& warp_scores, Tokens& warp_tokens) {
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  best = warp_best(best);
  if (lane == 0) {
    warp_scores[warp] = best.score;
    warp_tokens[warp] = best.token;
  }
  __syncthreads();
  if (threadIdx.x != 0) return best;
  for (int i = 1; i < kSampleWarps; ++i) best = better(best, {warp_scores[i], warp_tokens[i]});
  return best;
}

// The best token of each block's part of a row, with noise unless the temperature is 0; the row's last block to arrive
// takes the best of those.
// Occupancy: draw 256 threads x 4 blocks, 0 B
template <class T>
__global__ void __launch_bounds__(kSampleThreads)
    draw(__grid_constant__ const SampleParams params, int levels, float log_min_p) {
  SIMT_SHARED(float, warp_tops, kSampleWarps);
  SIMT_SHARED(uint64_t, warp_sums, kSampleWarps);
  SIMT_SHARED(uint64_t, found, 2);
  SIMT_SHARED(double, warp_scores, kSampleWarps);
  SIMT_SHARED(int64_t, warp_tokens, kSampleWarps);
  SIMT_SHARED(uint32_t, arrived_before, 1);
  simt::let_successor_start();
  simt::wait_for_predecessors();
  const int64_t row = blockIdx.y;
  const float top = row_top(params, warp_tops);
  uint32_t limit = kInfinityBits;
  if (levels > 0) {
    const int64_t index = row * levels + levels - 1;
    limit = find_bin(params.histograms + index * kSampleBins, params.ranges[index], kSampleLevels - 1, params.top_p,
                     warp_sums, found)
                .low;
  }
  const uint64_t seed = static_cast<uint64_t>(params.rng[2 * row]);
  const uint64_t counter = static_cast<uint64_t>(params.rng[2 * row + 1]);
  const Candidate none{-__builtin_huge_val(), params.V};
  Candidate best = none;
  for_each_token(static_cast<const T*>(params.logits) + row * params.V, params.V, [&](int64_t i, float logit) {
    if (params.temperature == 0.0f) {
      best = better(best, {static_cast<double>(logit), i});
      return;
    }
    const uint32_t key = key_of(logit, top, params.temperature);
    const float z = z_of(key);
    if (key > limit || z < log_min_p) return;
    // With n = 2^24 - (word >> 8) the noise is at most (25 - floor(log2 n)) log 2: logarithms only where that could
    // win.
    const uint32_t high = philox(seed, counter, static_cast<uint32_t>(i)) >> 8;
    const int exponent = static_cast<int>(__float_as_uint(static_cast<float>(0x1000000u - high)) >> 23) - 127;
    if (z + (static_cast<float>(25 - exponent) * 0.6931472f + 1e-4f) < best.score) return;
    const double u = (static_cast<double>(high) + 0.5) * 0x1p-24;
    best = better(best, {static_cast<double>(z) - log(-log(u)), i});
  });
  best = block_best(best, warp_scores, warp_tokens);
  const int64_t first_block = row * gridDim.x;
  if (threadIdx.x == 0) {
    params.block_scores[first_block + blockIdx.x] = best.score;
    params.block_tokens[first_block + blockIdx.x] = best.token;
  }
  simt::fence_writes();
  __syncthreads();
  if (threadIdx.x == 0) arrived_before[0] = simt::arrive(params.arrivals + row);
  __syncthreads();
  if (arrived_before[0] + 1 != gridDim.x) return;
  simt::fence_reads();
  best = none;
  if (threadIdx.x < gridDim.x) {
    best = {params.block_scores[first_block + threadIdx.x], params.block_tokens[first_block + threadIdx.x]};
  }
  best = block_best(best, warp_scores, warp_tokens);
  if (threadIdx.x == 0) params.token[row] = top > kMinusInfinity ? best.token : -1;  // not above it: a NaN too
}

// The power of two that leaves room for V tokens of mass 1 below 2^62.
float mass_scale(int64_t V) {
  float scale = 4611686018427387904.0f;
  for (int64_t tokens = 1; tokens < V; tokens *= 2) scale *= 0.5f;
  return scale;
}

template <class T>
cudaError_t launch_kernels(const SampleParams& params, cudaStream_t stream) {
  const int64_t blocks = sample_blocks(params.V);
  const int levels = sample_levels(params.V, params.temperature, params.top_k, params.top_p);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(params.B)), block(kSampleThreads);
  cudaError_t error = simt::launch_dependent<find_tops<T>>(grid, block, stream, params, int64_t{levels} * kSampleBins);
  const bool counts = params.top_k > 0 && params.top_k < params.V;
  LevelParams level{0, 0, 0, mass_scale(params.V)};
  for (; error == cudaSuccess && level.index < levels; ++level.index) {
    level.level = level.index % kSampleLevels;
    level.top_k = counts && level.index < kSampleLevels ? params.top_k : 0;
    error = simt::launch_dependent<fill_histogram<T>>(grid, block, stream, params, level, levels);
  }
  if (error != cudaSuccess) return error;
  const float log_min_p = params.min_p > 0.0 ? static_cast<float>(log(params.min_p)) : kMinusInfinity;
  return simt::launch_dependent<draw<T>>(grid, block, stream, params, levels, log_min_p);
}

}  // namespace

int64_t sample_blocks(int64_t V) {
  const int64_t blocks = divide_up(V, kTokensPerBlock);
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

int sample_levels(int64_t V, float temperature, int64_t top_k, double top_p) {
  if (temperature == 0.0f) return 0;
  return (top_k > 0 && top_k < V ? kSampleLevels : 0) + (top_p < 1.0 ? kSampleLevels : 0);
}

cudaError_t launch_sample(const SampleParams& params, simt::Dtype dtype, cudaStream_t stream) {
  const bool in_range = params.B >= 0 && params.B <= kMaxGridYZ && params.V >= 1 && params.V <= INT32_MAX &&
                        params.temperature >= 0.0f && params.temperature < -kMinusInfinity && params.top_k >= 0 &&
                        params.top_p > 0.0 && params.top_p <= 1.0 && params.min_p >= 0.0 && params.min_p <= 1.0;
  if (!in_range) return cudaErrorInvalidValue;
  if (params.B == 0) return cudaSuccess;
  return simt::with_element_type(
      dtype, [&](auto tag) { return launch_kernels<typename decltype(tag)::Type>(params, stream); });
}

}  // namespace persimmon::cuda
