#include "attention.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "binding.h"
#include "huge_pages.h"

namespace persimmon::cpu {
namespace {

const int64_t* check_range(OptionalTensor& values, const char* name, const at::Tensor& q) {
  if (!values.has_value()) return nullptr;
  check_same_device(*values, name, q, "q");
  check_dtype(*values, name, at::kLong);
  check_shape(*values, name, {q.size(0)});
  values = values->contiguous();
  return values->const_data_ptr<int64_t>();
}

// Of q [B, H, T, D] and S keys. Checks the range and the scale.
AttentionShape shape_of(const at::Tensor& q, int64_t S, KeyRange& range, double scale) {
  check_score_scale(scale);
  return {
      .start = check_range(range.start, "start", q),
      .length = check_range(range.length, "length", q),
      .offset = check_range(range.offset, "offset", q),
      .B = q.size(0),
      .T = q.size(2),
      .S = S,
      .H = q.size(1),
      .D = q.size(3),
      .scale = float(scale),
      .dtype = dtype_of(q, "q"),
  };
}

// In how many parts the keys of few queries are split, so that all cores have work. A function of the shapes alone:
// with the number of threads in it, the order of summation would change with it.
int64_t split_count(const AttentionShape& shape) {
  constexpr int64_t kMaxQueries = 8, kMinKeys = 256, kUnits = 64;
  if (shape.T > kMaxQueries) return 1;
  const int64_t by_heads = kUnits / std::max<int64_t>(1, shape.B * shape.H), by_keys = shape.S / kMinKeys;
  return std::max<int64_t>(1, std::min(by_heads, by_keys));
}

struct KeyRows {
  Rows k, v, k_scale, v_scale;  // the scales null but for int8 codes
};

std::tuple<at::Tensor, at::Tensor> run(const AttentionShape& shape, const at::Tensor& q, const KeyRows& keys) {
  const auto [start, length, offset, B, T, S, H, D, _scale, _dtype] = shape;
  const at::TensorOptions fp32 = q.options().dtype(at::kFloat);
  const at::Tensor out = on_huge_pages(at::empty({B, T, H, D}, q.options())), lse = at::empty({B, H, T}, fp32);
  if (B * T * H == 0) return {out, lse};
  const int64_t splits = split_count(shape), floats = attention_scratch(D);
  const at::Tensor partials = at::empty({splits > 1 ? splits * B * H * T * (1 + D) : 0}, fp32);
  const at::Tensor scratch = at::empty({at::get_num_threads(), floats}, fp32);
  AttentionParams params{
      .shape = shape,
      .q = rows_of(q),
      .k = keys.k,
      .v = keys.v,
      .k_scale = keys.k_scale,
      .v_scale = keys.v_scale,
      .out = out.mutable_data_ptr(),
      .lse = lse.mutable_data_ptr<float>(),
      .partials = splits > 1 ? partials.mutable_data_ptr<float>() : nullptr,
      .scratch = scratch.mutable_data_ptr<float>(),
      .splits = splits,
  };
  const auto run_units = [&](auto kernel, int64_t units, int64_t bytes_per_unit) {
    const int64_t grain = std::max<int64_t>(1, (64 << 10) / std::max<int64_t>(1, bytes_per_unit));
    at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
      AttentionParams own = params;
      own.scratch += at::get_thread_num() * floats;
      kernel(own, begin, end);
    });
  };
  // A query costs about as much as reading its keys does, from the second one on.
  const int64_t element_bytes = keys.k_scale.data != nullptr ? 1 : q.element_size();
  const int64_t key_bytes = 2 * S / splits * D * element_bytes;
  run_units(attention_kernel(), B * H * query_blocks(T) * splits, key_bytes * std::min(T, kQueryBlock));
  if (splits > 1) run_units(attention_combine_kernel(), B * H * T, splits * (1 + D) * int64_t(sizeof(float)));
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const OptionalTensor& start, const OptionalTensor& length,
                                             const OptionalTensor& offset, double scale) {
  return attend(q, k, v, {start, length, offset}, scale);
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) { m.impl("attention", attention); }

}  // namespace

AttentionShape attention_shape(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, KeyRange& range,
                               double scale) {
  check_dim(q, "q", 4);
  check_dim(k, "k", 4);
  TORCH_CHECK_VALUE(q.size(3) >= 1, "q must have a head dimension of at least 1, got shape ", q.sizes(), ".");
  check_like(k, "k", q, "q", {q.size(0), q.size(1), k.size(2), q.size(3)});
  check_like(v, "v", q, "q", k.sizes());
  return shape_of(q, k.size(2), range, scale);
}

at::Tensor with_contiguous_rows(const at::Tensor& t) {
  return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous();
}

Rows rows_of(const at::Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_,
                                          KeyRange range, double scale) {
  const AttentionShape shape = attention_shape(q_, k_, v_, range, scale);
  const at::Tensor q = with_contiguous_rows(q_), k = with_contiguous_rows(k_), v = with_contiguous_rows(v_);
  return run(shape, q, {rows_of(k), rows_of(v), {}, {}});
}

at::Tensor attend_int8(const at::Tensor& q, const Int8Caches& caches, KeyRange range, double scale) {
  const AttentionShape shape = shape_of(q, caches.k.size(2), range, scale);
  const KeyRows keys{rows_of(caches.k), rows_of(caches.v), rows_of(caches.k_scale), rows_of(caches.v_scale)};
  return std::get<0>(run(shape, with_contiguous_rows(q), keys));
}

}  // namespace persimmon::cpu
