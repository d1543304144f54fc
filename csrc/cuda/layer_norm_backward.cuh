// Gradients of layer normalisation (see layer_norm.cuh). With z = (x - mean) / sqrt(var + eps) and u = grad * weight,
// means over a row:
//
//   dx = (u - mean(u) - z * mean(u * z)) / sqrt(var + eps)
//   dweight[c] = sum over n of grad * z      dbias[c] = sum over n of grad
//
// The statistics are computed again from x. Sums over rows have two stages in a fixed order, so the same input gives
// the same bits: teams of threads add up their rows in registers, then a second kernel adds the teams (column_sum.cuh).
//
// Bytes moved: 3 N C elements, and the teams' sums twice: 16 C bytes a team.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

struct LayerNormBackwardParams {
  const void* grad;    // [N, C]
  const void* x;       // [N, C]
  const void* weight;  // [C]
  void* dx;            // [N, C]
  float* partials;     // [plan.teams, 2, C] scratch, 16-byte aligned
  void* dweight;       // [C]
  void* dbias;         // [C]; outputs may not overlap the inputs
  int64_t rows;        // N
  int64_t columns;     // C
  float eps;
};

// A row belongs to `threads_per_row` consecutive threads, a team; team i takes rows i, i + teams, and so on.
struct LayerNormBackwardPlan {
  bool vectorised;  // 16-byte accesses, row and sums in registers; otherwise element by element, sums in `partials`
  int threads_per_row;
  int teams_per_block;
  int64_t blocks;
  int64_t teams() const { return blocks * teams_per_block; }
};
LayerNormBackwardPlan plan_layer_norm_backward(const LayerNormBackwardParams& params, int element_bytes);

// Starts both kernels on `stream`; returns an error for negative sizes or when a launch fails. Without rows, dweight
// and dbias are zeros.
cudaError_t launch_layer_norm_backward(const LayerNormBackwardParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
