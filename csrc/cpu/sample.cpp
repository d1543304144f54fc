#include "kernels/sample.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "binding.h"

namespace persimmon::cpu {
namespace {

void check_options(double temperature, int64_t top_k, double top_p, double min_p) {
  TORCH_CHECK_VALUE(temperature >= 0 && std::isfinite(temperature),
                    "temperature must be a finite number, 0 or above, got ", temperature, ".");
  TORCH_CHECK_VALUE(top_k >= 0, "top_k must be 0 (off) or above, got ", top_k, ".");
  TORCH_CHECK_VALUE(top_p > 0 && top_p <= 1, "top_p must be above 0 and at most 1, got ", top_p, ".");
  TORCH_CHECK_VALUE(min_p >= 0 && min_p <= 1, "min_p must be between 0 and 1, got ", min_p, ".");
}

void check_rows(const std::vector<SampleStatus>& status) {
  for (size_t row = 0; row < status.size(); ++row) {
    TORCH_CHECK_VALUE(status[row] != SampleStatus::nan, "logits must not hold NaN, got one in row ", row, ".");
    TORCH_CHECK_VALUE(status[row] != SampleStatus::inf, "logits must not hold inf, got one in row ", row, ".");
    TORCH_CHECK_VALUE(status[row] != SampleStatus::nothing,
                      "a row of logits must hold a finite value, got only -inf in row ", row, ".");
  }
}

at::Tensor sample(const at::Tensor& logits_, const at::Tensor& rng_, double temperature, int64_t top_k, double top_p,
                  double min_p) {
  const DType dtype = dtype_of(logits_, "logits");
  check_dim(logits_, "logits", 2);
  const int64_t B = logits_.size(0), V = logits_.size(1);
  TORCH_CHECK_VALUE(V > 0 && V <= INT32_MAX, "logits must have between 1 and 2^31 - 1 columns, got shape ",
                    logits_.sizes(), ".");
  check_same_device(rng_, "rng", logits_, "logits");
  check_dtype(rng_, "rng", at::kLong);
  check_shape(rng_, "rng", {B, 2});
  check_options(temperature, top_k, top_p, min_p);

  const at::Tensor logits = logits_.contiguous(), rng = rng_.contiguous();
  const at::Tensor token = at::empty({B}, rng.options());
  std::vector<SampleStatus> status(B);
  // A temperature that fp32 would round to 0 still divides: by the smallest normal number, with the same outcome.
  const float divisor = temperature > 0 ? std::max(float(temperature), 0x1p-126f) : 0.f;
  at::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor scratch = at::empty({2, V}, logits.options().dtype(at::kFloat));
    const SampleParams params{
        .logits = logits.const_data_ptr(),
        .rng = rng.const_data_ptr<int64_t>(),
        .token = token.mutable_data_ptr<int64_t>(),
        .status = status.data(),
        .scratch = scratch.mutable_data_ptr<float>(),
        .V = V,
        .temperature = divisor,
        .top_k = top_k,
        .top_p = top_p,
        .min_p = min_p,
        .dtype = dtype,
    };
    sample_kernel()(params, begin, end);
  });
  check_rows(status);
  return token;
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) { m.impl("sample", sample); }

}  // namespace
}  // namespace persimmon::cpu
