#include "kernels/sample.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

#include "../sample_checks.h"
#include "binding.h"

namespace persimmon::cpu {
namespace {

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
  check_sample(logits_, rng_, temperature, top_k, top_p, min_p);
  const int64_t B = logits_.size(0), V = logits_.size(1);

  const at::Tensor logits = logits_.contiguous(), rng = rng_.contiguous();
  const at::Tensor token = at::empty({B}, rng.options());
  std::vector<SampleStatus> status(B);
  const float divisor = sample_divisor(temperature);
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
