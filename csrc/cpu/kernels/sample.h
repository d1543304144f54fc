// A token per row of logits, without a sort: every filter (top-k, top-p, min-p) keeps the logits above some threshold,
// which a histogram over the bits of the logits finds, and the draw is an argmax with Gumbel noise.
// For each row, with z = (logit - max) / temperature:
//   top_k > 0     keep z >= the k-th largest
//   top_p < 1     keep z >= the last of the largest whose softmax mass reaches top_p
//   min_p > 0     keep exp(z) >= min_p
//   token         argmax z - log(-log u), the first index on ties; u from Philox (see philox.h)
// Reads the logits for their maximum, then works on fp32 copies; the noise is evaluated in fp64, where u never rounds
// to 1.
#pragma once

#include "kernel.h"

namespace persimmon::cpu {

enum class SampleStatus : int8_t { ok, nan, inf, nothing };

struct SampleParams {
  const void* logits;    // [B, V]
  const int64_t* rng;    // [B, 2] = (seed, counter)
  int64_t* token;        // [B] out
  SampleStatus* status;  // [B] out: why a row has no token
  float* scratch;        // [2, V] fp32, for the rows of one call
  int64_t V;
  float temperature;  // 0: the argmax of the logits
  int64_t top_k;      // 0: off
  double top_p, min_p;
  DType dtype;
};

PERSIMMON_DECLARE_KERNEL(sample, SampleParams)  // over rows

}  // namespace persimmon::cpu
