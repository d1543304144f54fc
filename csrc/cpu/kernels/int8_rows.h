// Rows of an int8 cache: codes and a scale for each row,
//   scale = max |x| / 127,  code = x / scale, to the nearest (even) integer.
// Of a row with a NaN or an infinity no value is finite. Reads x once.
#pragma once

#include "attention.h"
#include "qk_norm_rope.h"

namespace persimmon::cpu {

struct Int8RowsParams {
  Rows x;                // [B, H, T, D]
  const int64_t* slots;  // [B, T]: row that token t goes to, -1 for none
  RowsOut codes;         // int8 [B, H, S, D]
  RowsOut scale;         // fp32 [B, H, S, 1]
  int64_t T, H, D;
  DType dtype;
};

PERSIMMON_DECLARE_KERNEL(int8_rows, Int8RowsParams)  // over rows (b, h, t)

}  // namespace persimmon::cpu
