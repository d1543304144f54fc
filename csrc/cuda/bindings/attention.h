// Arguments of the attention ops: checks, and the kernels' parameters.
#pragma once

#include <ATen/core/Tensor.h>

#include "../attention.cuh"
#include "binding.h"

namespace persimmon::cuda {

// Checked arguments that outlive the launch: the kernels' parameters point into them.
struct AttentionArguments {
  at::Tensor q;                          // [B, H, T, D]
  at::Tensor k, v;                       // [B, H, S, D]
  OptionalTensor start, length, offset;  // int64 [B]
  simt::Dtype dtype;

  int batch() const { return static_cast<int>(q.size(0)); }
  int heads() const { return static_cast<int>(q.size(1)); }
  int queries() const { return static_cast<int>(q.size(2)); }
  int keys() const { return static_cast<int>(k.size(2)); }
  AttentionRange range() const;
};

AttentionArguments attention_arguments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const OptionalTensor& start, const OptionalTensor& length,
                                       const OptionalTensor& offset);

// `t`, or a contiguous copy where its rows are not contiguous or not aligned to 16 bytes.
at::Tensor with_aligned_rows(const at::Tensor& t);

// Of a tensor whose dimensions are ordered (b, h, row, D).
AttentionTensor attention_tensor(const at::Tensor& t);

}  // namespace persimmon::cuda
