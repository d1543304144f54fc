// What a dense product leaves for the sparse product that reads its output [M, F]: which of the F columns (the hidden
// units) are not zero in every row. A bit a column, so the list is in ascending order whatever the order of the blocks:
// each writes the words of its own columns, nobody counts, and nobody waits.
#pragma once
#include "../simt/simt.h"
#include "plan.cuh"

namespace persimmon::cuda {

struct NonzeroList {
  uint16_t* words;  // [F / 16, rounded up]: bit j of word i is set where column 16 i + j has a non-zero (or NaN)
  // Counters that the sparse product wants to find at zero, and that the dense one therefore sets to zero.
  uint32_t* arrivals;
  int64_t arrival_count;
};

inline int64_t nonzero_words(int64_t F) { return divide_up(F, 16); }

}  // namespace persimmon::cuda
