#include "attention.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "../attention_hopper.cuh"
#include "../head_dim.cuh"

namespace persimmon::cuda {
namespace {

OptionalTensor check_range(const OptionalTensor& values, const char* name, const at::Tensor& q) {
  if (!values.has_value()) return std::nullopt;
  check_same_device(*values, name, q, "q");
  check_dtype(*values, name, at::kLong);
  check_shape(*values, name, {q.size(0)});
  return values->contiguous();
}

const int64_t* data_of(const OptionalTensor& values) {
  return values.has_value() ? values->const_data_ptr<int64_t>() : nullptr;
}

bool is_hopper(const at::Tensor& t) {
  int major = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, t.get_device());
  return error == cudaSuccess && major == 9;
}

// The Hopper kernel where it takes the tensors, otherwise that for sm_80 and later.
cudaError_t launch_for_device(const AttentionParams& params, simt::Dtype dtype, const at::Tensor& q) {
  const cudaStream_t stream = current_stream();
  if (is_hopper(q)) {
    const cudaError_t error = launch_attention_hopper(params, dtype, stream);
    if (error != cudaErrorNotSupported) return error;
  }
  return launch_attention(params, dtype, stream);
}

// out [B, T, H, D] and the log-sum-exp of the scores, fp32 [B, H, T].
std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const OptionalTensor& start, const OptionalTensor& length,
                                             const OptionalTensor& offset, double scale) {
  const c10::cuda::CUDAGuard guard(q.device());
  check_score_scale(scale);
  const AttentionArguments arguments = attention_arguments(q, k, v, start, length, offset);
  const int64_t B = q.size(0), H = q.size(1), T = q.size(2);
  const at::Tensor out = at::empty({B, T, H, kHeadDim}, q.options());
  const at::Tensor lse = at::empty({B, H, T}, q.options().dtype(at::kFloat));
  const AttentionParams params{
      .q = attention_tensor(arguments.q),
      .k = attention_tensor(arguments.k),
      .v = attention_tensor(arguments.v),
      .out = out.mutable_data_ptr(),
      .lse = lse.mutable_data_ptr<float>(),
      .range = arguments.range(),
      .batch = arguments.batch(),
      .heads = arguments.heads(),
      .queries = arguments.queries(),
      .keys = arguments.keys(),
      .scale = static_cast<float>(scale),
  };
  check_launch(launch_for_device(params, arguments.dtype, q), "attention", q, "q");
  return {out, lse};
}

}  // namespace

AttentionRange AttentionArguments::range() const { return {data_of(start), data_of(length), data_of(offset)}; }

AttentionArguments attention_arguments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const OptionalTensor& start, const OptionalTensor& length,
                                       const OptionalTensor& offset) {
  constexpr int64_t kMaxRows = int64_t{1} << 29;
  const simt::Dtype dtype = dtype_of(q, "q");
  TORCH_CHECK_TYPE(dtype != simt::Dtype::kFloat32, "q must be bfloat16 or float16 on CUDA, got float32.");
  check_dim(q, "q", 4);
  check_dim(k, "k", 4);
  TORCH_CHECK_VALUE(q.size(3) == kHeadDim, "q must have a head dimension of ", kHeadDim, " on CUDA, got shape ",
                    q.sizes(), ".");
  check_like(k, "k", q, "q", {q.size(0), q.size(1), k.size(2), kHeadDim});
  check_like(v, "v", q, "q", k.sizes());
  check_grid(q.size(0), "sequences", q, "q");
  check_grid(q.size(1), "heads", q, "q");
  TORCH_CHECK_VALUE(q.size(2) <= kMaxRows && k.size(2) <= kMaxRows, "q and k must have at most ", kMaxRows,
                    " positions, got shapes ", q.sizes(), " and ", k.sizes(), ".");
  return {with_aligned_rows(q),
          with_aligned_rows(k),
          with_aligned_rows(v),
          check_range(start, "start", q),
          check_range(length, "length", q),
          check_range(offset, "offset", q),
          dtype};
}

at::Tensor with_aligned_rows(const at::Tensor& t) {
  const int64_t elements = 16 / t.element_size();
  bool aligned = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 && t.stride(3) == 1;
  for (int dim = 0; dim < 3; ++dim) aligned = aligned && t.stride(dim) % elements == 0;
  return aligned ? t : t.clone(at::MemoryFormat::Contiguous);
}

AttentionTensor attention_tensor(const at::Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) { m.impl("attention", TORCH_FN(persimmon::cuda::attention)); }
