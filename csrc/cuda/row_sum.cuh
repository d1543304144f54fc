// Sums over the threads that share a row: blockDim.x consecutive threads, a multiple of 32; blockDim.y rows in a block.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

// Sum of `value` over the threads of a row, the same bits in each of them. Every thread of the block calls it. Value is
// float or a struct of floats with a warp_sum of its own. `partial` holds one sum a warp. The caller uses different
// arrays for two sums in a row: the barrier of one then also separates the readers of the other from its next writers.
template <class Value, class Shared>
SIMT_DEVICE Value row_sum(Value value, Shared& partial) {
  using simt::warp_sum;
  value = warp_sum(value);
  const int warps_per_row = blockDim.x / simt::kWarpSize;
  if (warps_per_row == 1) return value;
  const int lane = threadIdx.x % simt::kWarpSize;
  const int first_warp = threadIdx.y * warps_per_row;
  if (lane == 0) partial[first_warp + threadIdx.x / simt::kWarpSize] = value;
  __syncthreads();
  value = Value{};
  if (lane < warps_per_row) value = partial[first_warp + lane];
  return warp_sum(value);
}

}  // namespace persimmon::cuda
