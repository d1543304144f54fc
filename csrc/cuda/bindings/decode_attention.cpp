#include "../decode_attention.cuh"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <cmath>
#include <optional>

#include "qk.h"

namespace persimmon::cuda {
namespace {

// The slots' values are not looked at: that would wait for the device.
at::Tensor decode_attention_(const at::Tensor& qkv_, const at::Tensor& q_weight_, const at::Tensor& q_bias_,
                             const at::Tensor& k_weight_, const at::Tensor& k_bias_, const at::Tensor& cos_,
                             const at::Tensor& sin_, const at::Tensor& k_cache, const at::Tensor& v_cache,
                             const at::Tensor& slots_, const std::optional<at::Tensor>& start_, double eps,
                             double scale) {
  check_qkv(qkv_, q_weight_, k_weight_);
  check_like(q_bias_, "q_bias", qkv_, "qkv", {qkv_.size(4)});
  check_like(k_bias_, "k_bias", qkv_, "qkv", {qkv_.size(4)});
  check_rotation(cos_, sin_, qkv_);
  check_head_dims(qkv_, cos_);
  check_caches(k_cache, v_cache, qkv_);
  check_cache_alignment(k_cache, "k_cache");
  check_cache_alignment(v_cache, "v_cache");
  check_slots(slots_, qkv_);
  check_eps(eps);
  TORCH_CHECK_VALUE(std::isfinite(scale), "scale must be finite, got ", scale, ".");
  const simt::Dtype dtype = dtype_of(qkv_, "qkv");
  TORCH_CHECK_TYPE(dtype != simt::Dtype::kFloat32, "qkv must be bfloat16 or float16 on a CUDA device, got float32.");
  const int64_t B = qkv_.size(0), T = qkv_.size(1), H = qkv_.size(2), S = k_cache.size(2);
  TORCH_CHECK_VALUE(T >= 1 && T <= kMaxDecodeTokens, "decode_attention_ takes 1 to ", kMaxDecodeTokens,
                    " new tokens, got ", T, ".");
  if (start_) {
    check_same_device(*start_, "start", qkv_, "qkv");
    check_dtype(*start_, "start", at::kLong);
    check_shape(*start_, "start", {B});
  }

  const c10::cuda::CUDAGuard guard(qkv_.device());
  const at::Tensor qkv = aligned_contiguous(qkv_), cos = aligned_contiguous(cos_), sin = aligned_contiguous(sin_);
  const at::Tensor q_weight = aligned_contiguous(q_weight_), q_bias = aligned_contiguous(q_bias_);
  const at::Tensor k_weight = aligned_contiguous(k_weight_), k_bias = aligned_contiguous(k_bias_);
  const at::Tensor slots = slots_.contiguous(), start = start_ ? start_->contiguous() : at::Tensor();
  const at::Tensor out = at::empty({B, T, H, kHeadDim}, qkv.options());
  const int64_t splits = decode_attention_splits(B, H, S);
  const at::Tensor partials =
      at::empty({splits > 1 ? B * H * splits * T * (kHeadDim + 2) : 0}, qkv.options().dtype(at::kFloat));
  const DecodeAttentionParams params{
      .qkv = qkv.const_data_ptr(),
      .q_weight = q_weight.const_data_ptr(),
      .q_bias = q_bias.const_data_ptr(),
      .k_weight = k_weight.const_data_ptr(),
      .k_bias = k_bias.const_data_ptr(),
      .cos = cos.const_data_ptr<float>(),
      .sin = sin.const_data_ptr<float>(),
      .slots = slots.const_data_ptr<int64_t>(),
      .start = start.defined() ? start.const_data_ptr<int64_t>() : nullptr,
      .k = head_rows_out(k_cache),
      .v = head_rows_out(v_cache),
      .out = out.mutable_data_ptr(),
      .partials = partials.mutable_data_ptr<float>(),
      .angle_batch_stride = angle_batch_stride(cos),
      .B = B,
      .T = T,
      .H = H,
      .S = S,
      .eps = static_cast<float>(eps),
      .scale = static_cast<float>(scale),
  };
  check_launch(launch_decode_attention(params, dtype, current_stream()), "decode_attention_", qkv, "qkv");
  return out;
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("decode_attention_", TORCH_FN(persimmon::cuda::decode_attention_));
}
