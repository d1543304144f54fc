// Checks shared by the bindings of the ops on a fused projection qkv [B, T, H, 3, D], on any device. None reads a
// value.
#pragma once

#include <ATen/MemoryOverlap.h>

#include "checks.h"

namespace persimmon {

inline void check_qkv(const at::Tensor& qkv, const at::Tensor& q_weight, const at::Tensor& k_weight) {
  check_dim(qkv, "qkv", 5);
  TORCH_CHECK_VALUE(qkv.size(3) == 3, "qkv must have shape [B, T, H, 3, D], got ", qkv.sizes(), ".");
  TORCH_CHECK_VALUE(qkv.size(4) >= 1, "qkv must have a head dimension of at least 1, got shape ", qkv.sizes(), ".");
  check_like(q_weight, "q_weight", qkv, "qkv", {qkv.size(4)});
  check_like(k_weight, "k_weight", qkv, "qkv", {qkv.size(4)});
}

// cos or sin: fp32 [B or 1, T, R/2] with R <= D.
inline void check_angles(const at::Tensor& angles, const char* name, const at::Tensor& qkv) {
  check_same_device(angles, name, qkv, "qkv");
  check_dtype(angles, name, at::kFloat);
  check_dim(angles, name, 3);
  TORCH_CHECK_VALUE(angles.size(0) == 1 || angles.size(0) == qkv.size(0), name, " must have batch size 1 or ",
                    qkv.size(0), ", got shape ", angles.sizes(), ".");
  TORCH_CHECK_VALUE(angles.size(1) == qkv.size(1), name, " must have one row for each of ", qkv.size(1),
                    " tokens, got shape ", angles.sizes(), ".");
  TORCH_CHECK_VALUE(2 * angles.size(2) <= qkv.size(4), name, " must have at most D/2 = ", qkv.size(4) / 2,
                    " columns, got shape ", angles.sizes(), ".");
}

inline void check_rotation(const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& qkv) {
  check_angles(cos, "cos", qkv);
  check_angles(sin, "sin", qkv);
  check_shape(sin, "sin", cos.sizes());
}

// Of a tensor whose rows a kernel writes.
inline void check_writable_rows(const at::Tensor& rows, const char* name) {
  TORCH_CHECK_VALUE(rows.size(-1) == 1 || rows.stride(-1) == 1, name, " must be contiguous in its last dimension, got ",
                    "strides ", rows.strides(), ".");
  TORCH_CHECK_VALUE(at::has_internal_overlap(rows) != at::MemOverlap::Yes, name,
                    " must not be an expanded tensor, got strides ", rows.strides(), ".");
}

inline void check_cache(const at::Tensor& cache, const char* name, const at::Tensor& qkv, int64_t S) {
  check_like(cache, name, qkv, "qkv", {qkv.size(0), qkv.size(2), S, qkv.size(4)});
  check_writable_rows(cache, name);
}

// Of contiguous cos and sin, from one batch row to the next.
inline int64_t angle_batch_stride(const at::Tensor& cos) { return cos.size(0) == 1 ? 0 : cos.size(1) * cos.size(2); }

// Tensors whose gaps hold each other's elements, as two halves of one buffer's rows, are apart; nobody looks into
// those.
inline void check_apart(const at::Tensor& written, const char* name, const at::Tensor& other, const char* other_name) {
  const at::MemOverlapStatus status = at::get_overlap_status(written, other);
  TORCH_CHECK_VALUE(status != at::MemOverlapStatus::Full && status != at::MemOverlapStatus::Partial, name, " and ",
                    other_name, " must not share memory.");
}

// k_cache and v_cache [B, H, S, D].
inline void check_caches(const at::Tensor& k_cache, const at::Tensor& v_cache, const at::Tensor& qkv) {
  check_dim(k_cache, "k_cache", 4);
  check_cache(k_cache, "k_cache", qkv, k_cache.size(2));
  check_cache(v_cache, "v_cache", qkv, k_cache.size(2));
  check_apart(k_cache, "k_cache", v_cache, "v_cache");
  check_apart(k_cache, "k_cache", qkv, "qkv");
  check_apart(v_cache, "v_cache", qkv, "qkv");
}

// Caches of int8 codes [B, H, S, D] with a float32 scale for each row, [B, H, S, 1].
struct Int8Caches {
  const at::Tensor &k, &v, &k_scale, &v_scale;
};

inline void check_int8_caches(const Int8Caches& caches, const at::Tensor& qkv) {
  check_dim(caches.k, "k_cache", 4);
  const int64_t B = qkv.size(0), H = qkv.size(2), S = caches.k.size(2), D = qkv.size(4);
  const auto check = [&](const at::Tensor& t, const char* name, at::ScalarType dtype, int64_t width) {
    check_same_device(t, name, qkv, "qkv");
    check_dtype(t, name, dtype);
    check_shape(t, name, {B, H, S, width});
    check_writable_rows(t, name);
    check_apart(t, name, qkv, "qkv");
  };
  check(caches.k, "k_cache", at::kChar, D);
  check(caches.v, "v_cache", at::kChar, D);
  check(caches.k_scale, "k_scale", at::kFloat, 1);
  check(caches.v_scale, "v_scale", at::kFloat, 1);
  check_apart(caches.k, "k_cache", caches.v, "v_cache");
  check_apart(caches.k_scale, "k_scale", caches.v_scale, "v_scale");
}

// slots: int64 [B, T].
inline void check_slots(const at::Tensor& slots, const at::Tensor& qkv) {
  check_same_device(slots, "slots", qkv, "qkv");
  check_dtype(slots, "slots", at::kLong);
  check_shape(slots, "slots", {qkv.size(0), qkv.size(1)});
}

}  // namespace persimmon
