#include "../qk_norm_rope.cuh"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "../qk_norm_rope_backward.cuh"
#include "qk.h"

namespace persimmon::cuda {
namespace {

// Writes k and v to `k_out` and `v_out` [B, H, S, D], and returns q; slots [B, T], or undefined for row t.
at::Tensor launch(const at::Tensor& qkv, const Norms& norms, const at::Tensor& cos, const at::Tensor& sin,
                  const at::Tensor& k_out, const at::Tensor& v_out, const at::Tensor& slots, double eps,
                  const char* op) {
  const simt::Dtype dtype = dtype_of(qkv, "qkv");
  const QkvTensors tensors(qkv, norms, cos, sin);
  const at::Tensor q = at::empty({qkv.size(0), qkv.size(2), qkv.size(1), kHeadDim}, qkv.options());
  const QkNormRopeParams params{
      .in = tensors.inputs(eps),
      .slots = slots.defined() ? slots.const_data_ptr<int64_t>() : nullptr,
      .q = q.mutable_data_ptr(),
      .k = head_rows_out(k_out),
      .v = head_rows_out(v_out),
      .cache_rows = k_out.size(2),
  };
  check_launch(launch_qk_norm_rope(params, dtype, current_stream()), op, qkv, "qkv");
  return q;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> qk_norm_rope(const at::Tensor& qkv, const at::Tensor& q_weight,
                                                            const at::Tensor& q_bias, const at::Tensor& k_weight,
                                                            const at::Tensor& k_bias, const at::Tensor& cos,
                                                            const at::Tensor& sin, double eps) {
  const Norms norms{q_weight, q_bias, k_weight, k_bias};
  check_qkv_arguments(qkv, norms, cos, sin, eps);
  const c10::cuda::CUDAGuard guard(qkv.device());
  const at::Tensor k = at::empty({qkv.size(0), qkv.size(2), qkv.size(1), kHeadDim}, qkv.options());
  const at::Tensor v = at::empty_like(k);
  return {launch(qkv, norms, cos, sin, k, v, at::Tensor(), eps, "qk_norm_rope"), k, v};
}

at::Tensor qk_norm_rope_append_(const at::Tensor& qkv, const at::Tensor& q_weight, const at::Tensor& q_bias,
                                const at::Tensor& k_weight, const at::Tensor& k_bias, const at::Tensor& cos,
                                const at::Tensor& sin, const at::Tensor& k_cache, const at::Tensor& v_cache,
                                const at::Tensor& slots, double eps) {
  const Norms norms{q_weight, q_bias, k_weight, k_bias};
  check_qkv_arguments(qkv, norms, cos, sin, eps);
  check_caches(k_cache, v_cache, qkv);
  check_cache_alignment(k_cache, "k_cache");
  check_cache_alignment(v_cache, "v_cache");
  check_slots(slots, qkv);
  const c10::cuda::CUDAGuard guard(qkv.device());
  return launch(qkv, norms, cos, sin, k_cache, v_cache, slots.contiguous(), eps, "qk_norm_rope_append_");
}

// Returns dqkv [B, T, H, 3, D] and the gradients of the four norm parameters, [D] each.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> qk_norm_rope_backward(
    const at::Tensor& dq_, const at::Tensor& dk_, const at::Tensor& dv_, const at::Tensor& qkv,
    const at::Tensor& q_weight, const at::Tensor& k_weight, const at::Tensor& cos, const at::Tensor& sin, double eps) {
  const at::Tensor no_bias;
  const Norms norms{q_weight, no_bias, k_weight, no_bias};
  check_qkv_arguments(qkv, norms, cos, sin, eps);
  const simt::Dtype dtype = dtype_of(qkv, "qkv");
  const int64_t B = qkv.size(0), T = qkv.size(1), H = qkv.size(2);
  check_like(dq_, "dq", qkv, "qkv", {B, H, T, kHeadDim});
  check_like(dk_, "dk", qkv, "qkv", {B, H, T, kHeadDim});
  check_like(dv_, "dv", qkv, "qkv", {B, H, T, kHeadDim});

  const c10::cuda::CUDAGuard guard(qkv.device());
  const at::Tensor dq = aligned_contiguous(dq_), dk = aligned_contiguous(dk_), dv = aligned_contiguous(dv_);
  const QkvTensors tensors(qkv, norms, cos, sin);
  const int64_t blocks = qk_norm_rope_backward_blocks(B * T * H, dtype);
  const at::Tensor partials = at::empty({blocks, 4, kHeadDim}, qkv.options().dtype(at::kFloat));
  const at::Tensor dqkv = at::empty_like(tensors.qkv);
  const at::Tensor dq_weight = at::empty_like(q_weight), dq_bias = at::empty_like(q_weight);
  const at::Tensor dk_weight = at::empty_like(k_weight), dk_bias = at::empty_like(k_weight);
  const QkNormRopeBackwardParams params{
      .in = tensors.inputs(eps),
      .dq = dq.const_data_ptr(),
      .dk = dk.const_data_ptr(),
      .dv = dv.const_data_ptr(),
      .dqkv = dqkv.mutable_data_ptr(),
      .partials = partials.mutable_data_ptr<float>(),
      .dweights = {dq_weight.mutable_data_ptr(), dq_bias.mutable_data_ptr(), dk_weight.mutable_data_ptr(),
                   dk_bias.mutable_data_ptr()},
  };
  check_launch(launch_qk_norm_rope_backward(params, dtype, current_stream()), "qk_norm_rope_backward", qkv, "qkv");
  return {dqkv, dq_weight, dq_bias, dk_weight, dk_bias};
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("qk_norm_rope", TORCH_FN(persimmon::cuda::qk_norm_rope));
  m.impl("qk_norm_rope_append_", TORCH_FN(persimmon::cuda::qk_norm_rope_append_));
  m.impl("qk_norm_rope_backward", TORCH_FN(persimmon::cuda::qk_norm_rope_backward));
}
