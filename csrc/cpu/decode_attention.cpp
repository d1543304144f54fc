// decode_attention_: the append and the attention over the cache, back to back. Only q goes through memory in between.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "attention.h"
#include "binding.h"
#include "qk_norm_rope.h"

namespace persimmon::cpu {
namespace {

constexpr int64_t kMaxTokens = 8;

void check_consecutive(const at::Tensor& slots) {
  const int64_t B = slots.size(0), T = slots.size(1);
  const int64_t* values = slots.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 1; t < T; ++t) {
      const int64_t previous = values[b * T + t - 1], slot = values[b * T + t];
      TORCH_CHECK_VALUE(slot == previous + 1, "slots must be consecutive in each row, got ", previous, " followed by ",
                        slot, " in batch row ", b, ".");
    }
  }
}

// What the new tokens see, from slots and start, which are checked before anything is written.
KeyRange key_range(const char* op, const at::Tensor& qkv, const at::Tensor& slots_, const OptionalTensor& start) {
  check_dim(qkv, "qkv", 5);
  const int64_t B = qkv.size(0), T = qkv.size(1);
  TORCH_CHECK_VALUE(T >= 1 && T <= kMaxTokens, op, " takes 1 to ", kMaxTokens, " new tokens, got ", T, ".");
  check_same_device(slots_, "slots", qkv, "qkv");
  check_dtype(slots_, "slots", at::kLong);
  check_shape(slots_, "slots", {B, T});
  if (start.has_value()) {
    check_same_device(*start, "start", qkv, "qkv");
    check_dtype(*start, "start", at::kLong);
    check_shape(*start, "start", {B});
  }
  const at::Tensor slots = slots_.contiguous();
  check_consecutive(slots);
  KeyRange range{start, at::empty({B}, slots.options()), at::empty({B}, slots.options())};
  for (int64_t b = 0; b < B; ++b) {
    const int64_t* row = slots.const_data_ptr<int64_t>() + b * T;
    range.offset->mutable_data_ptr<int64_t>()[b] = row[0];
    range.length->mutable_data_ptr<int64_t>()[b] = row[T - 1] + 1;
  }
  return range;
}

at::Tensor decode_attention_(const at::Tensor& qkv, const at::Tensor& q_weight, const at::Tensor& q_bias,
                             const at::Tensor& k_weight, const at::Tensor& k_bias, const at::Tensor& cos,
                             const at::Tensor& sin, const at::Tensor& k_cache, const at::Tensor& v_cache,
                             const at::Tensor& slots, const OptionalTensor& start, double eps, double scale) {
  const KeyRange range = key_range("decode_attention_", qkv, slots, start);
  check_score_scale(scale);
  const at::Tensor q =
      qk_norm_rope_append(qkv, {q_weight, q_bias, k_weight, k_bias}, cos, sin, k_cache, v_cache, slots, eps);
  return std::get<0>(attend(q, k_cache, v_cache, range, scale));
}

at::Tensor decode_attention_int8_(const at::Tensor& qkv, const at::Tensor& q_weight, const at::Tensor& q_bias,
                                  const at::Tensor& k_weight, const at::Tensor& k_bias, const at::Tensor& cos,
                                  const at::Tensor& sin, const at::Tensor& k_cache, const at::Tensor& v_cache,
                                  const at::Tensor& k_scale, const at::Tensor& v_scale, const at::Tensor& slots,
                                  const OptionalTensor& start, double eps, double scale) {
  const KeyRange range = key_range("decode_attention_int8_", qkv, slots, start);
  check_score_scale(scale);
  const Int8Caches caches{k_cache, v_cache, k_scale, v_scale};
  const at::Tensor q =
      qk_norm_rope_append_int8(qkv, {q_weight, q_bias, k_weight, k_bias}, cos, sin, caches, slots, eps);
  return attend_int8(q, caches, range, scale);
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("decode_attention_", decode_attention_);
  m.impl("decode_attention_int8_", decode_attention_int8_);
}

}  // namespace
}  // namespace persimmon::cpu
