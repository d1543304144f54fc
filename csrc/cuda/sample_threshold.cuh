// How the kernels of `sample` share a row's maximum and find a threshold in histograms (see sample.cuh).
#pragma once
#include "sample.cuh"

namespace persimmon::cuda {

constexpr int kSampleThreads = 256;
constexpr int kSampleWarps = kSampleThreads / simt::kWarpSize;
constexpr int kBinsPerThread = kSampleBins / kSampleThreads;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr float kFirstBins = 64.0f;  // of the first level, in a unit of z

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

SIMT_DEVICE uint32_t first_level_bin(uint32_t key) {
  const float scaled = __uint_as_float(key) * kFirstBins;
  return scaled < kSampleBins - 1 ? static_cast<uint32_t>(scaled) : kSampleBins - 1;
}

// The bin of a key at a level, or kSampleBins where it is outside of the range.
SIMT_DEVICE uint32_t bin_of(uint32_t key, int level, const SampleRange& range) {
  if (level == 0) return first_level_bin(key);
  if (key < range.low) return kSampleBins;
  const uint32_t bin = (key - range.low) >> range.shift;
  return bin < kSampleBins ? bin : kSampleBins;
}

// The range that bin `bin` of a level stands for.
SIMT_DEVICE void narrow(SampleRange& range, int level, uint32_t bin) {
  uint32_t last;  // bits of the size of the range, minus one
  if (level == 0) {
    range.low = __float_as_uint(static_cast<float>(bin) / kFirstBins);
    const bool open = bin == kSampleBins - 1;
    last = (open ? kInfinityBits : __float_as_uint(static_cast<float>(bin + 1) / kFirstBins) - 1) - range.low;
  } else {
    range.low += bin << range.shift;
    last = (1u << range.shift) - 1;
  }
  range.shift = 0;
  while (last >> range.shift >= kSampleBins) ++range.shift;
}

// Finds in the histogram of a level the bin in which the sum of weights reaches the target, and narrows the range to
// it. At level 0 the target is given by `top_k`, or where that is 0 as the share `top_p` of the histogram's sum. Every
// thread of the block calls it and gets the result.
template <class Sums, class Found>
SIMT_DEVICE SampleRange find_bin(const uint64_t* histogram, SampleRange range, int level, int64_t top_k, double top_p,
                                 Sums& warp_sums, Found& found) {
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  uint64_t weights[kBinsPerThread], sum = 0;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) sum += weights[i] = histogram[threadIdx.x * kBinsPerThread + i];
  uint64_t up_to = sum;  // of the warp's threads up to this one
#pragma unroll
  for (int offset = 1; offset < simt::kWarpSize; offset *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, up_to, offset);
    if (lane >= offset) up_to += other;
  }
  if (lane == simt::kWarpSize - 1) warp_sums[warp] = up_to;
  __syncthreads();
  uint64_t total = 0;
  for (int i = 0; i < kSampleWarps; ++i) {
    const uint64_t warp_sum = warp_sums[i];
    total += warp_sum;
    if (i < warp) up_to += warp_sum;
  }
  if (level == 0) {
    range.before = 0;
    const double share = top_p * static_cast<double>(total);
    const uint64_t mass = share < 1.0 ? 1 : static_cast<uint64_t>(share);
    range.target = top_k > 0 ? static_cast<uint64_t>(top_k) : mass < total ? mass : total;
  }
  uint64_t before = range.before + up_to - sum;
  if (before < range.target && range.target <= before + sum) {  // in one thread
    uint32_t bin = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      if (before >= range.target) continue;
      if (before + weights[i] >= range.target) {
        bin = threadIdx.x * kBinsPerThread + i;
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
  narrow(range, level, static_cast<uint32_t>(static_cast<uint64_t>(found[1])));
  return range;
}

}  // namespace persimmon::cuda
