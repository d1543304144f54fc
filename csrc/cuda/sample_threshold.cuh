// How the kernels of `sample` share a row's maximum and find a threshold in histograms (see sample.cuh).
#pragma once
#include "sample.cuh"

namespace persimmon::cuda {

constexpr int kSampleThreads = 256;
constexpr int kSampleWarps = kSampleThreads / simt::kWarpSize;
constexpr int kBinsPerThread = kSampleBins / kSampleThreads;
constexpr int kTokensAtOnce = 8;  // whose logits a thread has in flight
constexpr int kTokensPerBlock = kTokensAtOnce * kSampleThreads;
constexpr uint32_t kInfinityBits = 0x7f800000u;

// use(i, logit) for the block's part of the tokens of a row.
template <class T, class Use>
SIMT_DEVICE void for_each_token(const T* logits, int64_t V, const Use& use) {
  for (int64_t first = int64_t{blockIdx.x} * kTokensPerBlock; first < V;
       first += int64_t{gridDim.x} * kTokensPerBlock) {
    const int64_t own = first + threadIdx.x;
    T values[kTokensAtOnce];
#pragma unroll
    for (int j = 0; j < kTokensAtOnce; ++j) {
      if (own + j * kSampleThreads < V) values[j] = logits[own + j * kSampleThreads];
    }
#pragma unroll
    for (int j = 0; j < kTokensAtOnce; ++j) {
      if (own + j * kSampleThreads < V) use(own + j * kSampleThreads, simt::to_float(values[j]));
    }
  }
}

// Largest `value` over the block, NaN if any is NaN. Every thread of the block calls it.
template <class Shared>
SIMT_DEVICE float block_max(float value, Shared& warp_values) {
  const auto larger = [](float a, float b) { return a != a || a > b ? a : b; };
#pragma unroll
  for (int offset = simt::kWarpSize / 2; offset > 0; offset /= 2) {
    value = larger(value, __shfl_xor_sync(~0u, value, offset));
  }
  if (threadIdx.x % simt::kWarpSize == 0) warp_values[threadIdx.x / simt::kWarpSize] = value;
  __syncthreads();
  for (int i = 0; i < kSampleWarps; ++i) value = larger(value, warp_values[i]);
  return value;
}

// z = (logit - top) / temperature as the bits of |z|; z <= 0.
SIMT_DEVICE uint32_t key_of(float logit, float top, float temperature) {
  return __float_as_uint((logit - top) / temperature) & 0x7fffffffu;
}
SIMT_DEVICE float z_of(uint32_t key) { return -__uint_as_float(key); }

// How many bins a level has, and how many keys each is wide, as a power of two: the first divides all keys, the others
// a bin of the one before.
SIMT_DEVICE int bin_count(int level) { return level == 0 ? kSampleBins : kSampleBins / 2; }
SIMT_DEVICE int bin_shift(int level) { return 10 * (kSampleLevels - 1 - level); }

// A histogram in shared memory: 64-bit sums in two words, since only 32-bit additions are instructions there.
struct BlockHistogram {
  simt::Shared<uint32_t> low, high;  // [kSampleBins] each
  int bins;                          // in use

  // Every thread of the block calls clear, then, after a barrier, add any number of times, then, after a barrier,
  // add_to.
  SIMT_DEVICE void clear() const {
    for (int bin = threadIdx.x; bin < bins; bin += kSampleThreads) {
      low[bin] = 0;
      high[bin] = 0;
    }
  }
  SIMT_DEVICE void add(uint32_t bin, uint64_t weight) const {
    const uint32_t low_word = static_cast<uint32_t>(weight), before = simt::atomic_add(low + bin, low_word);
    const uint32_t carry = before + low_word < before ? 1 : 0;
    const uint32_t high_word = static_cast<uint32_t>(weight >> 32) + carry;
    if (high_word != 0) simt::atomic_add(high + bin, high_word);
  }
  SIMT_DEVICE void add_to(uint64_t* histogram) const {
    for (int bin = threadIdx.x; bin < bins; bin += kSampleThreads) {
      const uint64_t sum = uint64_t{high[bin]} << 32 | low[bin];
      if (sum != 0) simt::atomic_add(histogram + bin, sum);
    }
  }
};

// Finds in the histogram of a level the bin in which the sum of weights reaches the target, and narrows the range to
// it. A target of 0 is one of top_p, whose mass its first histogram tells. Every thread of the block calls it and gets
// the result.
template <class Sums, class Found>
SIMT_DEVICE SampleRange find_bin(const uint64_t* histogram, SampleRange range, int level, double top_p, Sums& warp_sums,
                                 Found& found) {
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  const int bins = bin_count(level) / kSampleThreads, first_bin = threadIdx.x * bins;  // a thread's
  uint64_t weights[kBinsPerThread], sum = 0;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) sum += weights[i] = i < bins ? histogram[first_bin + i] : 0;
  uint64_t up_to = sum;  // of the warp's threads up to this one
#pragma unroll
  for (int offset = 1; offset < simt::kWarpSize; offset *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, up_to, offset);
    if (lane >= offset) up_to += other;
  }
  if (threadIdx.x < 2) found[threadIdx.x] = 0;  // stays where a row weighs nothing
  if (lane == simt::kWarpSize - 1) warp_sums[warp] = up_to;
  __syncthreads();
  uint64_t total = 0;
  for (int i = 0; i < kSampleWarps; ++i) {
    const uint64_t warp_sum = warp_sums[i];
    total += warp_sum;
    if (i < warp) up_to += warp_sum;
  }
  if (range.target == 0) {
    const double share = top_p * static_cast<double>(total);
    const uint64_t mass = share < 1.0 ? 1 : static_cast<uint64_t>(share);
    range.target = mass < total ? mass : total;
  }
  uint64_t before = range.before + up_to - sum;
  if (before < range.target && range.target <= before + sum) {  // in one thread
    uint32_t bin = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      if (before >= range.target) continue;
      if (before + weights[i] >= range.target) {
        bin = first_bin + i;
        found[0] = before;
        found[1] = bin;
        before = range.target;  // ends the search
      } else {
        before += weights[i];
      }
    }
  }
  __syncthreads();
  range.before = found[0];
  range.low += static_cast<uint32_t>(static_cast<uint64_t>(found[1])) << bin_shift(level);
  range.high = min(range.high, range.low + ((1u << bin_shift(level)) - 1u));
  return range;
}

}  // namespace persimmon::cuda
