// The scratch of attention's gradient for one (b, h), and the tile of queries and keys it works on. Only for files
// compiled per instruction set.
#pragma once

#include "attention_blocks.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// Blocks of queries are as long as blocks of keys. Where products take pairs of bf16, the blocks named "or pairs" hold
// half as many floats as they have room for.
struct GradientScratch {
  float *q, *dout;                        // [rows, padded(D)], or pairs along the rows
  float* k;                               // [keys, padded(D)], or pairs along the keys
  float *k_transposed, *v_transposed;     // [D, kKeyBlock], or pairs along D
  float *dk, *dv;                         // [keys, padded(D)]
  float *probabilities, *score_gradient;  // [rows, kKeyBlock]
  float* rounded;                         // one of these in bf16, and behind it its pairs along the rows
  float* delta;                           // [T]: sum over the keys of probability * dprobability

  GradientScratch(float* scratch, int64_t P) {
    for (float** block : {&q, &dout, &k, &k_transposed, &v_transposed, &dk, &dv}) {
      *block = scratch;
      scratch += kKeyBlock * P;
    }
    probabilities = scratch;
    score_gradient = probabilities + kKeyBlock * kKeyBlock;
    rounded = score_gradient + kKeyBlock * kKeyBlock;
    delta = rounded + kKeyBlock * kKeyBlock;
  }
};

// A block of queries [t, t + rows) against a block of keys [s, s + keys).
struct Tile {
  int64_t t, rows, s, keys;
  Visible visible;

  // How many keys of the block query t + r sees, and the first query that sees key s + j, as a row of the tile.
  int64_t seen(int64_t r) const { return min_of(max_of(visible.end(t + r) - s, 0), keys); }
  int64_t first_query(int64_t j) const { return min_of(max_of(s + j - visible.offset - t, 0), rows); }
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
