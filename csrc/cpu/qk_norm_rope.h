// The append step, shared by qk_norm_rope_append_ and decode_attention_.
#pragma once

#include <ATen/core/Tensor.h>

#include "../qk_checks.h"

namespace persimmon::cpu {

// Weight and bias [D] of the query norm and of the key norm.
struct QkNorms {
  const at::Tensor &q_weight, &q_bias, &k_weight, &k_bias;
};

// Norms and rotates q and k of qkv [B, T, H, 3, D], writes k and v to rows `slots` [B, T] of the caches [B, H, S, D],
// and returns q [B, H, T, D]. Checks every argument.
at::Tensor qk_norm_rope_append(const at::Tensor& qkv, const QkNorms& norms, const at::Tensor& cos,
                               const at::Tensor& sin, const at::Tensor& k_cache, const at::Tensor& v_cache,
                               const at::Tensor& slots, double eps);

// The same with rows rounded to int8 codes. Checks every argument.
at::Tensor qk_norm_rope_append_int8(const at::Tensor& qkv, const QkNorms& norms, const at::Tensor& cos,
                                    const at::Tensor& sin, const Int8Caches& caches, const at::Tensor& slots,
                                    double eps);

}  // namespace persimmon::cpu
