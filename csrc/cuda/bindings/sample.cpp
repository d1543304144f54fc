#include "../sample.cuh"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "../../sample_checks.h"
#include "binding.h"

namespace persimmon::cuda {
namespace {

at::Tensor sample(const at::Tensor& logits_, const at::Tensor& rng_, double temperature, int64_t top_k, double top_p,
                  double min_p) {
  const simt::Dtype dtype = dtype_of(logits_, "logits");
  check_sample(logits_, rng_, temperature, top_k, top_p, min_p);
  check_grid(logits_.size(0), "rows", logits_, "logits");
  const int64_t B = logits_.size(0), V = logits_.size(1);

  const c10::cuda::CUDAGuard guard(logits_.device());
  const at::Tensor logits = logits_.contiguous(), rng = rng_.contiguous();
  const at::Tensor token = at::empty({B}, rng.options());
  const float divisor = sample_divisor(temperature);
  const int64_t blocks = sample_blocks(V), levels = sample_levels(V, divisor, top_k, top_p);
  const at::Tensor block_tops = at::empty({B, blocks}, logits.options().dtype(at::kFloat));
  const at::Tensor block_scores = at::empty({B, blocks}, logits.options().dtype(at::kDouble));
  const at::Tensor block_tokens = at::empty({B, blocks}, rng.options());
  const at::Tensor histograms = at::empty({B, levels, kSampleBins}, rng.options());
  const at::Tensor ranges =
      at::empty({B, levels, static_cast<int64_t>(sizeof(SampleRange) / sizeof(int64_t))}, rng.options());
  const at::Tensor arrivals = at::empty({B}, rng.options().dtype(at::kInt));
  const SampleParams params{
      .logits = logits.const_data_ptr(),
      .rng = rng.const_data_ptr<int64_t>(),
      .token = token.mutable_data_ptr<int64_t>(),
      .block_tops = block_tops.mutable_data_ptr<float>(),
      .block_scores = block_scores.mutable_data_ptr<double>(),
      .block_tokens = block_tokens.mutable_data_ptr<int64_t>(),
      .histograms = static_cast<uint64_t*>(histograms.mutable_data_ptr()),
      .ranges = static_cast<SampleRange*>(ranges.mutable_data_ptr()),
      .arrivals = static_cast<uint32_t*>(arrivals.mutable_data_ptr()),
      .B = B,
      .V = V,
      .temperature = divisor,
      .top_k = top_k,
      .top_p = top_p,
      .min_p = min_p,
  };
  check_launch(launch_sample(params, dtype, current_stream()), "sample", logits, "logits");
  return token;
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) { m.impl("sample", TORCH_FN(persimmon::cuda::sample)); }
