// Shared by the bindings of the ops on a fused projection qkv [B, T, H, 3, D].
#pragma once

#include "../../qk_checks.h"
#include "../head_dim.cuh"
#include "../qk_norm_rope.cuh"
#include "binding.h"

namespace persimmon::cuda {

// The kernels are written for Persimmon's sizes; other sizes have the reference.
inline void check_head_dims(const at::Tensor& qkv, const at::Tensor& cos) {
  TORCH_CHECK_VALUE(qkv.size(4) == kHeadDim, "qkv must have head dimension ", kHeadDim, " on a CUDA device, got shape ",
                    qkv.sizes(), ".");
  TORCH_CHECK_VALUE(2 * cos.size(2) == kRotaryDim, "cos must have ", kRotaryDim / 2,
                    " columns on a CUDA device, got shape ", cos.sizes(), ".");
}

// The kernels write whole 16-byte vectors.
inline void check_cache_alignment(const at::Tensor& cache, const char* name) {
  const int64_t width = 16 / cache.element_size();
  TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(cache.const_data_ptr()) % 16 == 0, name,
                    " must start at a multiple of 16 bytes on a CUDA device.");
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
