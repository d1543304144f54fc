// The attention step, shared by attention and decode_attention_, and what its gradient shares with it.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "../qk_checks.h"
#include "kernels/attention.h"

namespace persimmon::cpu {

// Which keys are visible: int64 [B] each, or empty for 0, S and S - T.
struct KeyRange {
  OptionalTensor start, length, offset;
};

// Checks q [B, H, T, D], k and v [B, H, S, D] and the range, which it makes contiguous; the result points into it.
AttentionShape attention_shape(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, KeyRange& range,
                               double scale);

// `t`, or a copy whose last dimension is contiguous.
at::Tensor with_contiguous_rows(const at::Tensor& t);

// Strides of a tensor whose dimensions are ordered (b, h, row, D).
Rows rows_of(const at::Tensor& t);

// out [B, T, H, D] and the log-sum-exp of the scores, fp32 [B, H, T].
std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, KeyRange range,
                                          double scale);

// The same over caches that have been checked; returns out.
at::Tensor attend_int8(const at::Tensor& q, const Int8Caches& caches, KeyRange range, double scale);

}  // namespace persimmon::cpu
