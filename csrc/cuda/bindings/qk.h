// Shared by the bindings of the ops on a fused projection qkv [B, T, H, 3, D].
#pragma once

#include "../../qk_checks.h"
#include "../qkv_inputs.cuh"
#include "binding.h"

namespace persimmon::cuda {

// The kernels are written for Persimmon's sizes; other sizes have the reference.
inline void check_head_dims(const at::Tensor& qkv, const at::Tensor& cos) {
  TORCH_CHECK_VALUE(qkv.size(4) == kHeadDim, "qkv must have head dimension ", kHeadDim, " on a CUDA device, got shape ",
                    qkv.sizes(), ".");
  TORCH_CHECK_VALUE(2 * cos.size(2) == kRotaryDim, "cos must have ", kRotaryDim / 2,
                    " columns on a CUDA device, got shape ", cos.sizes(), ".");
}

// Weight and bias [D] of the query norm and of the key norm; the biases are undefined where only gradients are
// computed.
struct Norms {
  const at::Tensor &q_weight, &q_bias, &k_weight, &k_bias;
};

inline void check_qkv_arguments(const at::Tensor& qkv, const Norms& norms, const at::Tensor& cos, const at::Tensor& sin,
                                double eps) {
  check_qkv(qkv, norms.q_weight, norms.k_weight);
  if (norms.q_bias.defined()) check_like(norms.q_bias, "q_bias", qkv, "qkv", {qkv.size(4)});
  if (norms.k_bias.defined()) check_like(norms.k_bias, "k_bias", qkv, "qkv", {qkv.size(4)});
  check_rotation(cos, sin, qkv);
  check_head_dims(qkv, cos);
  check_eps(eps);
}

// The arguments as kernels read them, and what holds their memory.
struct QkvTensors {
  QkvTensors(const at::Tensor& qkv_, const Norms& norms, const at::Tensor& cos_, const at::Tensor& sin_)
      : qkv(aligned_contiguous(qkv_)),
        q_weight(aligned_contiguous(norms.q_weight)),
        q_bias(norms.q_bias.defined() ? aligned_contiguous(norms.q_bias) : at::Tensor()),
        k_weight(aligned_contiguous(norms.k_weight)),
        k_bias(norms.k_bias.defined() ? aligned_contiguous(norms.k_bias) : at::Tensor()),
        cos(aligned_contiguous(cos_)),
        sin(aligned_contiguous(sin_)) {}

  QkvInputs inputs(double eps) const {
    return {
        .qkv = qkv.const_data_ptr(),
        .q_weight = q_weight.const_data_ptr(),
        .q_bias = data_or_null(q_bias),
        .k_weight = k_weight.const_data_ptr(),
        .k_bias = data_or_null(k_bias),
        .cos = cos.const_data_ptr<float>(),
        .sin = sin.const_data_ptr<float>(),
        .angle_batch_stride = angle_batch_stride(cos),
        .B = qkv.size(0),
        .T = qkv.size(1),
        .H = qkv.size(2),
        .eps = static_cast<float>(eps),
    };
  }

  const at::Tensor qkv, q_weight, q_bias, k_weight, k_bias, cos, sin;
};

// The kernels write vectors of `bytes`.
inline void check_cache_alignment(const at::Tensor& cache, const char* name, int bytes = 16) {
  const int64_t width = bytes / cache.element_size();
  const uintptr_t past = reinterpret_cast<uintptr_t>(cache.const_data_ptr()) % bytes;
  TORCH_CHECK_VALUE(past == 0, name, " must start at a multiple of ", bytes, " bytes on a CUDA device, and starts ",
                    past, " bytes past one.");
  for (int64_t i = 0; i < 3; ++i) {
    TORCH_CHECK_VALUE(cache.size(i) <= 1 || cache.stride(i) % width == 0, name,
                      " must have strides that are multiples of ", width, " elements on a CUDA device, got ",
                      cache.strides(), ".");
  }
}

inline HeadRowsOut head_rows_out(const at::Tensor& t) {
  const auto stride = [&](int64_t i) { return t.size(i) > 1 ? t.stride(i) : 0; };  // of one element: never used
  return {t.mutable_data_ptr(), stride(0), stride(1), stride(2)};
}

}  // namespace persimmon::cuda
