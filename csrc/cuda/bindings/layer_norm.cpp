#include "../layer_norm.cuh"

#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>

#include "binding.h"

namespace persimmon::cuda {
namespace {

// x [..., C]; weight, bias [C]. Returns a contiguous tensor like x.
at::Tensor layer_norm(const at::Tensor& x_, const at::Tensor& weight_, const at::Tensor& bias_, double eps) {
  const simt::Dtype dtype = dtype_of(x_, "x");
  TORCH_CHECK_VALUE(x_.dim() >= 1, "x must have at least one dimension, got a scalar.");
  const int64_t columns = x_.size(-1);
  check_like(weight_, "weight", x_, "x", {columns});
  check_like(bias_, "bias", x_, "x", {columns});
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= 0.0, "eps must be finite and not negative, got ", eps, ".");

  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous(), weight = weight_.contiguous(), bias = bias_.contiguous();
  const at::Tensor out = at::empty_like(x);
  if (x.numel() == 0) return out;
  const LayerNormParams params{
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .bias = bias.const_data_ptr(),
      .out = out.mutable_data_ptr(),
      .rows = x.numel() / columns,
      .columns = columns,
      .eps = static_cast<float>(eps),
  };
  check_launch(launch_layer_norm(params, dtype, c10::cuda::getCurrentCUDAStream().stream()), "layer_norm", x);
  return out;
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) { m.impl("layer_norm", TORCH_FN(persimmon::cuda::layer_norm)); }
