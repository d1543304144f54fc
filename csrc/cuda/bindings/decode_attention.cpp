#include "../decode_attention.cuh"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "qk.h"

namespace persimmon::cuda {
namespace {

using Launcher = cudaError_t (*)(const DecodeAttentionParams&, simt::Dtype, cudaStream_t);

// What does not depend on the format of the cache: checks and scratch. `params` has the caches and `S`.
at::Tensor run(const char* op, Launcher launch, DecodeAttentionParams params, const at::Tensor& qkv, const Norms& norms,
               const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& slots_, const OptionalTensor& start_,
               double eps, double scale) {
  check_slots(slots_, qkv);  // their values are not looked at: that would wait for the device
  check_score_scale(scale);
  const simt::Dtype dtype = dtype_of(qkv, "qkv");
  TORCH_CHECK_TYPE(dtype != simt::Dtype::kFloat32, "qkv must be bfloat16 or float16 on a CUDA device, got float32.");
  const int64_t B = qkv.size(0), T = qkv.size(1), H = qkv.size(2);
  check_grid(B, "sequences", qkv, "qkv");
  check_grid(H, "heads", qkv, "qkv");
  TORCH_CHECK_VALUE(T >= 1 && T <= kMaxDecodeTokens, op, " takes 1 to ", kMaxDecodeTokens, " new tokens, got ", T, ".");
  if (start_) {
    check_same_device(*start_, "start", qkv, "qkv");
    check_dtype(*start_, "start", at::kLong);
    check_shape(*start_, "start", {B});
  }

  const c10::cuda::CUDAGuard guard(qkv.device());
  const QkvTensors tensors(qkv, norms, cos, sin);
  const at::Tensor slots = slots_.contiguous(), start = start_ ? start_->contiguous() : at::Tensor();
  const at::Tensor out = at::empty({B, T, H, kHeadDim}, qkv.options());
  const int64_t splits = decode_attention_splits(B, H, params.S);
  const at::Tensor partials =
      at::empty({splits > 1 ? B * H * splits * T * (kHeadDim + 2) : 0}, qkv.options().dtype(at::kFloat));
  params.in = tensors.inputs(eps);
  params.slots = slots.const_data_ptr<int64_t>();
  params.start = start.defined() ? start.const_data_ptr<int64_t>() : nullptr;
  params.out = out.mutable_data_ptr();
  params.partials = partials.mutable_data_ptr<float>();
  params.scale = static_cast<float>(scale);
  check_launch(launch(params, dtype, current_stream()), op, qkv, "qkv");
  return out;
}

at::Tensor decode_attention_(const at::Tensor& qkv, const at::Tensor& q_weight, const at::Tensor& q_bias,
                             const at::Tensor& k_weight, const at::Tensor& k_bias, const at::Tensor& cos,
                             const at::Tensor& sin, const at::Tensor& k_cache, const at::Tensor& v_cache,
                             const at::Tensor& slots, const OptionalTensor& start, double eps, double scale) {
  const Norms norms{q_weight, q_bias, k_weight, k_bias};
  check_qkv_arguments(qkv, norms, cos, sin, eps);
  check_caches(k_cache, v_cache, qkv);
  check_cache_alignment(k_cache, "k_cache");
  check_cache_alignment(v_cache, "v_cache");
  DecodeAttentionParams params{};
  params.k = head_rows_out(k_cache);
  params.v = head_rows_out(v_cache);
  params.S = k_cache.size(2);
  return run("decode_attention_", launch_decode_attention, params, qkv, norms, cos, sin, slots, start, eps, scale);
}

at::Tensor decode_attention_int8_(const at::Tensor& qkv, const at::Tensor& q_weight, const at::Tensor& q_bias,
                                  const at::Tensor& k_weight, const at::Tensor& k_bias, const at::Tensor& cos,
                                  const at::Tensor& sin, const at::Tensor& k_cache, const at::Tensor& v_cache,
                                  const at::Tensor& k_scale, const at::Tensor& v_scale, const at::Tensor& slots,
                                  const OptionalTensor& start, double eps, double scale) {
  const Norms norms{q_weight, q_bias, k_weight, k_bias};
  check_qkv_arguments(qkv, norms, cos, sin, eps);
  check_int8_caches({k_cache, v_cache, k_scale, v_scale}, qkv);
  check_cache_alignment(k_cache, "k_cache", 8);
  check_cache_alignment(v_cache, "v_cache", 8);
  DecodeAttentionParams params{};
  params.k = head_rows_out(k_cache);
  params.v = head_rows_out(v_cache);
  params.k_scale = head_rows_out(k_scale);
  params.v_scale = head_rows_out(v_scale);
  params.S = k_cache.size(2);
  return run("decode_attention_int8_", launch_decode_attention_int8, params, qkv, norms, cos, sin, slots, start, eps,
             scale);
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("decode_attention_", TORCH_FN(persimmon::cuda::decode_attention_));
  m.impl("decode_attention_int8_", TORCH_FN(persimmon::cuda::decode_attention_int8_));
}
