#include "qk_norm_rope.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "attention.h"
#include "binding.h"
#include "huge_pages.h"
#include "kernels/int8_rows.h"
#include "kernels/qk_norm_rope.h"

namespace persimmon::cpu {
namespace {

RowsOut rows_out(const at::Tensor& t) { return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

void check_slot_values(const at::Tensor& slots, const at::Tensor& qkv, int64_t S) {
  const int64_t* values = slots.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < slots.numel(); ++i) {
    TORCH_CHECK_INDEX(values[i] >= -1 && values[i] < S, "slots must lie in [-1, ", S, "), the rows of the cache, got ",
                      values[i], " for token ", i % qkv.size(1), " of batch row ", i / qkv.size(1), ".");
  }
}

// Writes k and v to `k_out` and `v_out` [B, H, S, D] and returns q; slots: contiguous [B, T], or undefined for row t.
at::Tensor run(const at::Tensor& qkv_, const QkNorms& norms, const at::Tensor& cos_, const at::Tensor& sin_,
               const at::Tensor& k_out, const at::Tensor& v_out, const at::Tensor& slots, double eps) {
  const at::Tensor qkv = qkv_.contiguous(), cos = cos_.contiguous(), sin = sin_.contiguous();
  const at::Tensor q_weight = norms.q_weight.contiguous(), q_bias = norms.q_bias.contiguous();
  const at::Tensor k_weight = norms.k_weight.contiguous(), k_bias = norms.k_bias.contiguous();
  const int64_t B = qkv.size(0), T = qkv.size(1), H = qkv.size(2), D = qkv.size(4);
  const at::Tensor q = on_huge_pages(at::empty({B, H, T, D}, qkv.options()));
  const QkNormRopeParams params{
      .qkv = qkv.const_data_ptr(),
      .q_weight = q_weight.const_data_ptr(),
      .q_bias = q_bias.const_data_ptr(),
      .k_weight = k_weight.const_data_ptr(),
      .k_bias = k_bias.const_data_ptr(),
      .cos = cos.const_data_ptr<float>(),
      .sin = sin.const_data_ptr<float>(),
      .slots = slots.defined() ? slots.const_data_ptr<int64_t>() : nullptr,
      .q = q.mutable_data_ptr(),
      .k = rows_out(k_out),
      .v = rows_out(v_out),
      .angle_batch_stride = angle_batch_stride(cos),
      .T = T,
      .H = H,
      .D = D,
      .R = 2 * cos.size(2),
      .eps = float(eps),
      .dtype = dtype_of(qkv, "qkv"),
  };
  if (q.numel() == 0) return q;
  if (!slots.defined()) {
    parallel(qk_norm_rope_kernel(), params, B * H * T, 6 * D * qkv.element_size());
    return q;
  }
  // One thread writes all tokens of a head, in order: where slots repeat, the last token wins.
  const int64_t grain = std::max<int64_t>(1, (64 << 10) / (6 * T * D * qkv.element_size()));
  at::parallel_for(0, B * H, grain,
                   [&](int64_t begin, int64_t end) { qk_norm_rope_kernel()(params, begin * T, end * T); });
  return q;
}

void check_arguments(const at::Tensor& qkv, const QkNorms& norms, const at::Tensor& cos, const at::Tensor& sin,
                     double eps) {
  check_qkv(qkv, norms.q_weight, norms.k_weight);
  check_like(norms.q_bias, "q_bias", qkv, "qkv", {qkv.size(4)});
  check_like(norms.k_bias, "k_bias", qkv, "qkv", {qkv.size(4)});
  check_rotation(cos, sin, qkv);
  check_eps(eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_rope(const at::Tensor& qkv, const QkNorms& norms,
                                                         const at::Tensor& cos, const at::Tensor& sin, double eps) {
  check_arguments(qkv, norms, cos, sin, eps);
  const at::Tensor k = on_huge_pages(at::empty({qkv.size(0), qkv.size(2), qkv.size(1), qkv.size(4)}, qkv.options()));
  const at::Tensor v = on_huge_pages(at::empty_like(k));
  return {run(qkv, norms, cos, sin, k, v, at::Tensor(), eps), k, v};
}

// Rows of x [B, H, T, D] as codes and scales.
void write_int8(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& slots) {
  const int64_t B = x.size(0), H = x.size(1), T = x.size(2), D = x.size(3);
  const Int8RowsParams params{
      .x = rows_of(x),
      .slots = slots.const_data_ptr<int64_t>(),
      .codes = rows_out(codes),
      .scale = rows_out(scale),
      .T = T,
      .H = H,
      .D = D,
      .dtype = dtype_of(x, "qkv"),
  };
  parallel(int8_rows_kernel(), params, B * H * T, D * x.element_size());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> qk_norm_rope(const at::Tensor& qkv, const at::Tensor& q_weight,
                                                            const at::Tensor& q_bias, const at::Tensor& k_weight,
                                                            const at::Tensor& k_bias, const at::Tensor& cos,
                                                            const at::Tensor& sin, double eps) {
  return norm_rope(qkv, {q_weight, q_bias, k_weight, k_bias}, cos, sin, eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> qk_norm_rope_backward(
    const at::Tensor& dq_, const at::Tensor& dk_, const at::Tensor& dv_, const at::Tensor& qkv_,
    const at::Tensor& q_weight_, const at::Tensor& k_weight_, const at::Tensor& cos_, const at::Tensor& sin_,
    double eps) {
  check_qkv(qkv_, q_weight_, k_weight_);
  check_rotation(cos_, sin_, qkv_);
  check_eps(eps);
  const int64_t B = qkv_.size(0), T = qkv_.size(1), H = qkv_.size(2), D = qkv_.size(4);
  check_like(dq_, "dq", qkv_, "qkv", {B, H, T, D});
  check_like(dk_, "dk", qkv_, "qkv", {B, H, T, D});
  check_like(dv_, "dv", qkv_, "qkv", {B, H, T, D});
  const at::Tensor dq = dq_.contiguous(), dk = dk_.contiguous(), dv = dv_.contiguous(), qkv = qkv_.contiguous();
  const at::Tensor q_weight = q_weight_.contiguous(), k_weight = k_weight_.contiguous();
  const at::Tensor cos = cos_.contiguous(), sin = sin_.contiguous();
  // A fixed number of chunks, whatever the number of threads: the order of summation never changes.
  constexpr int64_t kMaxChunks = 64;
  const int64_t rows = B * T * H;
  const int64_t rows_per_chunk = std::max<int64_t>(64, (rows + kMaxChunks - 1) / kMaxChunks);
  const int64_t chunks = (rows + rows_per_chunk - 1) / rows_per_chunk;
  const at::Tensor dqkv = on_huge_pages(at::empty_like(qkv));
  const at::Tensor partials = at::empty({chunks, 5, D}, qkv.options().dtype(at::kFloat));
  const QkNormRopeBackwardParams params{
      .dq = dq.const_data_ptr(),
      .dk = dk.const_data_ptr(),
      .dv = dv.const_data_ptr(),
      .qkv = qkv.const_data_ptr(),
      .q_weight = q_weight.const_data_ptr(),
      .k_weight = k_weight.const_data_ptr(),
      .cos = cos.const_data_ptr<float>(),
      .sin = sin.const_data_ptr<float>(),
      .dqkv = dqkv.mutable_data_ptr(),
      .partials = partials.mutable_data_ptr<float>(),
      .angle_batch_stride = angle_batch_stride(cos),
      .T = T,
      .H = H,
      .D = D,
      .R = 2 * cos.size(2),
      .rows = rows,
      .rows_per_chunk = rows_per_chunk,
      .eps = float(eps),
      .dtype = dtype_of(qkv, "qkv"),
  };
  parallel(qk_norm_rope_backward_kernel(), params, chunks, rows_per_chunk * 9 * D * qkv.element_size());
  const at::Tensor sums = partials.sum(0);
  const auto gradient = [&](int64_t i) {  // a copy each: outputs must not share memory
    return sums[i].to(q_weight.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  };
  return {dqkv, gradient(0), gradient(1), gradient(2), gradient(3)};
}

at::Tensor qk_norm_rope_append_(const at::Tensor& qkv, const at::Tensor& q_weight, const at::Tensor& q_bias,
                                const at::Tensor& k_weight, const at::Tensor& k_bias, const at::Tensor& cos,
                                const at::Tensor& sin, const at::Tensor& k_cache, const at::Tensor& v_cache,
                                const at::Tensor& slots, double eps) {
  return qk_norm_rope_append(qkv, {q_weight, q_bias, k_weight, k_bias}, cos, sin, k_cache, v_cache, slots, eps);
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("qk_norm_rope", qk_norm_rope);
  m.impl("qk_norm_rope_backward", qk_norm_rope_backward);
  m.impl("qk_norm_rope_append_", qk_norm_rope_append_);
}

}  // namespace

at::Tensor qk_norm_rope_append(const at::Tensor& qkv, const QkNorms& norms, const at::Tensor& cos,
                               const at::Tensor& sin, const at::Tensor& k_cache, const at::Tensor& v_cache,
                               const at::Tensor& slots_, double eps) {
  check_arguments(qkv, norms, cos, sin, eps);
  check_caches(k_cache, v_cache, qkv);
  check_slots(slots_, qkv);
  const at::Tensor slots = slots_.contiguous();
  check_slot_values(slots, qkv, k_cache.size(2));
  return run(qkv, norms, cos, sin, k_cache, v_cache, slots, eps);
}

at::Tensor qk_norm_rope_append_int8(const at::Tensor& qkv, const QkNorms& norms, const at::Tensor& cos,
                                    const at::Tensor& sin, const Int8Caches& caches, const at::Tensor& slots_,
                                    double eps) {
  check_arguments(qkv, norms, cos, sin, eps);
  check_int8_caches(caches, qkv);
  check_slots(slots_, qkv);
  const at::Tensor slots = slots_.contiguous();
  check_slot_values(slots, qkv, caches.k.size(2));
  const auto [q, k, v] = norm_rope(qkv, norms, cos, sin, eps);
  write_int8(k, caches.k, caches.k_scale, slots);
  write_int8(v, caches.v, caches.v_scale, slots);
  return q;
}

}  // namespace persimmon::cpu
