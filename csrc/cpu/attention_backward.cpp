#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "attention.h"
#include "binding.h"
#include "huge_pages.h"

namespace persimmon::cpu {
namespace {

// The gradient holds dq in fp32 until all blocks of keys have added to it: B * H * T * D floats beside the results.
// One thread computes all of a head, in order, so the result is the same whatever the number of threads.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward(const at::Tensor& dout_, const at::Tensor& q_,
                                                                  const at::Tensor& k_, const at::Tensor& v_,
                                                                  const at::Tensor& out_, const at::Tensor& lse_,
                                                                  const OptionalTensor& start,
                                                                  const OptionalTensor& length,
                                                                  const OptionalTensor& offset, double scale) {
  KeyRange range{start, length, offset};
  const AttentionShape shape = attention_shape(q_, k_, v_, range, scale);
  const int64_t B = shape.B, T = shape.T, S = shape.S, H = shape.H, D = shape.D;
  check_like(dout_, "dout", q_, "q", {B, T, H, D});
  check_like(out_, "out", q_, "q", {B, T, H, D});
  check_same_device(lse_, "lse", q_, "q");
  check_dtype(lse_, "lse", at::kFloat);
  check_shape(lse_, "lse", {B, H, T});
  const at::Tensor q = with_contiguous_rows(q_), k = with_contiguous_rows(k_), v = with_contiguous_rows(v_);
  const at::Tensor dout = with_contiguous_rows(dout_), out = with_contiguous_rows(out_), lse = lse_.contiguous();
  const at::TensorOptions fp32 = q.options().dtype(at::kFloat);
  const at::Tensor dq = at::zeros({B, H, T, padded(D)}, fp32);
  const at::Tensor dk = on_huge_pages(at::empty({B, H, S, D}, q.options()));
  const at::Tensor dv = on_huge_pages(at::empty({B, H, S, D}, q.options()));
  const int64_t floats = attention_backward_scratch(T, D);
  const at::Tensor scratch = at::empty({at::get_num_threads(), floats}, fp32);
  const AttentionBackwardParams params{
      .shape = shape,
      .q = rows_of(q),
      .k = rows_of(k),
      .v = rows_of(v),
      .dout = rows_of(dout.transpose(1, 2)),
      .out = rows_of(out.transpose(1, 2)),
      .lse = lse.const_data_ptr<float>(),
      .dq = dq.mutable_data_ptr<float>(),
      .dk = dk.mutable_data_ptr(),
      .dv = dv.mutable_data_ptr(),
      .scratch = scratch.mutable_data_ptr<float>(),
  };
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    AttentionBackwardParams own = params;
    own.scratch += at::get_thread_num() * floats;
    attention_backward_kernel()(own, begin, end);
  });
  return {dq.narrow(3, 0, D).to(q.scalar_type()).contiguous(), dk, dv};
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) { m.impl("attention_backward", attention_backward); }

}  // namespace
}  // namespace persimmon::cpu
