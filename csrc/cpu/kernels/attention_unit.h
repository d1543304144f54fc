// The scratch of one unit of attention: a block of queries that walks its visible keys. Only for files compiled per
// instruction set.
#pragma once

#include "attention_blocks.h"
#include "block_product.h"

namespace persimmon::cpu::PERSIMMON_ISA {

static_assert(kMaxTileRows >= kTileRows);

// The queries are `rows` consecutive ones from `first`. With pairs, q holds [rows, D / 2] of them, k and v as many.
struct Unit {
  float *q, *out;        // [rows, padded(D)]
  float* k;              // [D, kKeyBlock] K^T
  float* v;              // [kKeyBlock, padded(D)]
  float* scores;         // [kMaxTileRows, kKeyBlock], then probabilities
  float* probabilities;  // the same as pairs of bf16
  float* max;            // [rows]: running maximum
  float* sum;            // [rows, kLanes]: running sum, a part in each lane
  int64_t first, rows;

  Unit(float* scratch, int64_t P) {
    q = scratch;
    out = q + kQueryBlock * P;
    k = out + kQueryBlock * P;
    v = k + kKeyBlock * P;
    scores = v + kKeyBlock * P;
    probabilities = scores + kMaxTileRows * kKeyBlock;
    max = probabilities + kMaxTileRows * kKeyBlock;
    sum = max + kQueryBlock;
  }
};

// scores [rows, kKeyBlock] = q K^T, `inner` elements or pairs long, for K as it lies in memory: kLanes keys at a time,
// one sum for each, transposed while reduced.
template <class Q, class K>
PERSIMMON_INLINE void dot_scores(const Q* q, int64_t q_stride, const K* k, int64_t k_stride, int64_t rows, int64_t keys,
                                 int64_t inner, float* scores) {
  for (int64_t s = 0; s < keys; s += kLanes) {
    const int64_t count = min_of(kLanes, keys - s);
    for (int64_t r = 0; r < rows; ++r) {
      vf sums[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        const K* key = k + (s + min_of(j, count - 1)) * k_stride;
        sums[j] = multiply_add(vf{}, load(q + r * q_stride), load(key));
        for (int64_t i = kLanes; i < inner; i += kLanes) {
          sums[j] = multiply_add(sums[j], load(q + r * q_stride + i), load(key + i));
        }
      }
      store(scores + r * kKeyBlock + s, reduce_add_each(sums));
    }
  }
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
