// Cross entropy of logits that exist a tile of columns at a time (csrc/cuda/bindings/linear_cross_entropy.cpp).
//
//   cross_entropy            folds a tile into max, sum of exp(logit - max), and the label's logit, [N] each
//   cross_entropy_backward   turns a tile into its gradient (exp(logit - lse) - [column is the label]) * dloss, in
//   place
//
// float32 inside. A row whose label is ignored has the gradient 0. Bytes moved: the tile once, or twice backward; from
// the L2 cache, as its product has just been written.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

struct CrossEntropyParams {
  const void* logits;     // [N, columns] of the tile
  const int64_t* labels;  // [N]
  float* max;             // [N], -inf before the first tile
  float* sum;             // [N], 0 before the first tile
  float* target;          // [N], the label's logit once its tile was seen
  int64_t rows;           // N
  int64_t first;          // column of the vocabulary that the tile begins at
  int64_t columns;
};

struct CrossEntropyBackwardParams {
  void* logits;           // [N, columns] of the tile; becomes the gradient
  const int64_t* labels;  // [N]
  const float* dloss;     // [N]
  const float* lse;       // [N]
  int64_t rows;           // N
  int64_t first;
  int64_t columns;
  int64_t ignore_index;
};

// Start the kernel on `stream`; dtype is that of the logits. Return an error for negative sizes or when the launch
// fails. Nothing to do: cudaSuccess.
cudaError_t launch_cross_entropy(const CrossEntropyParams& params, simt::Dtype dtype, cudaStream_t stream);
cudaError_t launch_cross_entropy_backward(const CrossEntropyBackwardParams& params, simt::Dtype dtype,
                                          cudaStream_t stream);

}  // namespace persimmon::cuda
