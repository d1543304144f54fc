// A token per row of logits, without a sort: every filter keeps the logits above some threshold, which histograms find,
// and the draw is an argmax with Gumbel noise. With z = (logit - max) / temperature:
//
//   top_k > 0     keep z >= the k-th largest
//   top_p < 1     keep z >= the last of the largest whose softmax mass reaches top_p
//   min_p > 0     keep z >= log(min_p)
//   token         argmax z - log(-log u), the first index on ties; u from Philox (philox.cuh), in float64
//
// The semantics and the noise are those of the CPU kernel (csrc/cpu/kernels/sample.h). As z <= 0, ascending bits of |z|
// (the key of a token) are descending z. A histogram counts tokens, or adds up their mass in fixed point: integers, so
// the order of atomic additions does not matter and the same input gives the same token. A block adds up its tokens in
// shared memory, and then each of its bins that is not empty to the row's histogram. Three levels, of 11, 10 and 10
// bits of the key, end at a single value of z. Each level is a kernel; its blocks all find the bin that the level
// before has left.
//
// A row with a NaN, with +inf or without a finite logit gives the token -1: raising would wait for the device.
//
// Kernels: 2, and 3 for each of top_k and top_p; on sm_90 and later each starts before the one in front of it has
// ended. Bytes moved: the logits in each of them, from the second on from the L2 cache. From there, each block behind a
// level also reads its histogram: 16 KB behind the first of a filter, 8 KB behind the others.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

constexpr int kSampleBins = 2048;
constexpr int kSampleLevels = 3;

// Where a threshold lies after some levels: among the keys low … high, with tokens of weight `before` below them.
struct SampleRange {
  uint64_t before, target;  // the threshold is where the sum of weights reaches the target; 0: top_p's, not yet known
  uint32_t low, high;
};

struct SampleParams {
  const void* logits;     // [B, V]
  const int64_t* rng;     // [B, 2] = (seed, counter)
  int64_t* token;         // [B]
  float* block_tops;      // [B, blocks] scratch, blocks = sample_blocks(V)
  double* block_scores;   // [B, blocks] scratch
  int64_t* block_tokens;  // [B, blocks] scratch
  uint64_t* histograms;   // [B, levels, kSampleBins] scratch, of the levels that sample_levels gives
  SampleRange* ranges;    // [B, levels] scratch
  uint32_t* arrivals;     // [B] scratch: blocks that have drawn
  int64_t B, V;
  float temperature;  // 0: the argmax of the logits
  int64_t top_k;      // 0: off
  double top_p, min_p;
};

int64_t sample_blocks(int64_t V);
int sample_levels(int64_t V, float temperature, int64_t top_k, double top_p);

// Starts the kernels on `stream`; returns an error for sizes or options out of range or when a launch fails. No rows:
// cudaSuccess.
cudaError_t launch_sample(const SampleParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
