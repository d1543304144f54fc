#include "../attention_backward.cuh"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "attention.h"

namespace persimmon::cuda {
namespace {

// dq [B, H, T, D], dk and dv [B, H, S, D].
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward(const at::Tensor& dout_, const at::Tensor& q,
                                                                  const at::Tensor& k, const at::Tensor& v,
                                                                  const at::Tensor& out_, const at::Tensor& lse_,
                                                                  const OptionalTensor& start,
                                                                  const OptionalTensor& length,
                                                                  const OptionalTensor& offset, double scale) {
  const c10::cuda::CUDAGuard guard(q.device());
  check_score_scale(scale);
  const AttentionArguments arguments = attention_arguments(q, k, v, start, length, offset);
  const int64_t B = q.size(0), H = q.size(1), T = q.size(2), D = q.size(3);
  check_like(dout_, "dout", q, "q", {B, T, H, D});
  check_like(out_, "out", q, "q", {B, T, H, D});
  check_same_device(lse_, "lse", q, "q");
  check_dtype(lse_, "lse", at::kFloat);
  check_shape(lse_, "lse", {B, H, T});
  const at::Tensor dout = with_aligned_rows(dout_), out = with_aligned_rows(out_), lse = lse_.contiguous();
  const at::Tensor delta = at::empty_like(lse);
  const at::Tensor dq = at::empty({B, H, T, D}, q.options());
  const at::Tensor dk = at::empty({B, H, k.size(2), D}, q.options()), dv = at::empty_like(dk);
  const AttentionBackwardParams params{
      .q = attention_tensor(arguments.q),
      .k = attention_tensor(arguments.k),
      .v = attention_tensor(arguments.v),
      .dout = attention_tensor(dout.transpose(1, 2)),
      .out = attention_tensor(out.transpose(1, 2)),
      .lse = lse.const_data_ptr<float>(),
      .delta = delta.mutable_data_ptr<float>(),
      .dq = dq.mutable_data_ptr(),
      .dk = dk.mutable_data_ptr(),
      .dv = dv.mutable_data_ptr(),
      .range = arguments.range(),
      .batch = arguments.batch(),
      .heads = arguments.heads(),
      .queries = arguments.queries(),
      .keys = arguments.keys(),
      .scale = static_cast<float>(scale),
  };
  check_launch(launch_attention_backward(params, arguments.dtype, current_stream()), "attention_backward", q, "q");
  return {dq, dk, dv};
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("attention_backward", TORCH_FN(persimmon::cuda::attention_backward));
}
