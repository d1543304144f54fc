// Checks shared by the bindings of `sample`, on any device. None reads a value.
#pragma once

#include <algorithm>
#include <cmath>

#include "checks.h"

namespace persimmon {

// logits [B, V], rng int64 [B, 2], and the options' ranges.
inline void check_sample(const at::Tensor& logits, const at::Tensor& rng, double temperature, int64_t top_k,
                         double top_p, double min_p) {
  check_dim(logits, "logits", 2);
  TORCH_CHECK_VALUE(logits.size(1) > 0 && logits.size(1) <= INT32_MAX,
                    "logits must have between 1 and 2^31 - 1 columns, got shape ", logits.sizes(), ".");
  check_same_device(rng, "rng", logits, "logits");
  check_dtype(rng, "rng", at::kLong);
  check_shape(rng, "rng", {logits.size(0), 2});
  TORCH_CHECK_VALUE(temperature >= 0 && std::isfinite(temperature),
                    "temperature must be a finite number, 0 or above, got ", temperature, ".");
  TORCH_CHECK_VALUE(top_k >= 0, "top_k must be 0 (off) or above, got ", top_k, ".");
  TORCH_CHECK_VALUE(top_p > 0 && top_p <= 1, "top_p must be above 0 and at most 1, got ", top_p, ".");
  TORCH_CHECK_VALUE(min_p >= 0 && min_p <= 1, "min_p must be between 0 and 1, got ", min_p, ".");
}

// What logits are divided by; 0 for the argmax. A temperature that fp32 would round to 0 still divides: by the smallest
// normal number, with the same outcome.
inline float sample_divisor(double temperature) {
  return temperature > 0 ? std::max(static_cast<float>(temperature), 0x1p-126f) : 0.0f;
}

}  // namespace persimmon
