// What the loss does with a tile of logits, rows [0, rows) and columns [first, first + columns) of the vocabulary.
//   forward   folds the tile into each row's running maximum and sum of exp(logit - maximum), and takes the label's
//   logit backward  replaces the logits with their gradient dloss * (exp(logit - lse) - [column is the label])
// fp32 inside. Reads (and writes) the tile once, plus once more for the maximum.
#pragma once

#include "kernel.h"

namespace persimmon::cpu {

struct CrossEntropyParams {
  const void* logits;     // [rows, columns]
  const int64_t* labels;  // [rows]
  float* max;             // [rows] in and out
  float* sum;             // [rows] in and out
  float* target;          // [rows] out where the label is in the tile
  int64_t first, columns;
  DType dtype;
};

struct CrossEntropyBackwardParams {
  void* logits;           // [rows, columns] in; out: their gradient
  const int64_t* labels;  // [rows]
  const float* dloss;     // [rows]
  const float* lse;       // [rows]
  int64_t first, columns, ignore_index;
  DType dtype;
};

PERSIMMON_DECLARE_KERNEL(cross_entropy, CrossEntropyParams)                   // over rows
PERSIMMON_DECLARE_KERNEL(cross_entropy_backward, CrossEntropyBackwardParams)  // over rows

}  // namespace persimmon::cpu
