// Shared by the CUDA bindings. Bindings are the only CUDA files that include torch, and only its lean headers:
// ATen/cuda/CUDAContext.h would need the headers of cuBLAS and cuSPARSE, which a toolkit may lack.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include "../../checks.h"
#include "../plan.cuh"

namespace persimmon::cuda {

inline simt::Dtype dtype_of(const at::Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return simt::Dtype::kFloat32;
    case at::kHalf:
      return simt::Dtype::kFloat16;
    case at::kBFloat16:
      return simt::Dtype::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be float32, bfloat16 or float16, got ", dtype_name(t.scalar_type()), ".");
  }
}

// For what a kernel's grid has in its second or third dimension.
inline void check_grid(int64_t count, const char* counted, const at::Tensor& x, const char* name) {
  TORCH_CHECK_VALUE(count <= kMaxGridYZ, name, " must have at most ", kMaxGridYZ, " ", counted,
                    " on a CUDA device, got shape ", x.sizes(), ".");
}

inline const void* data_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// `t`, or a copy, as contiguous memory that starts at a multiple of 16 bytes: for kernels with nothing but 16-byte
// accesses.
inline at::Tensor aligned_contiguous(const at::Tensor& t) {
  const at::Tensor contiguous = t.contiguous();
  return reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0 ? contiguous : contiguous.clone();
}

// Of the device that a CUDAGuard has made the current one.
inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// For the error that the launcher of `op` returned; x is the argument called `name`.
inline void check_launch(cudaError_t error, const char* op, const at::Tensor& x, const char* name) {
  TORCH_CHECK(error == cudaSuccess, "The CUDA kernel of ", op, " could not be launched on ", x.device(), " for ", name,
              " of shape ", x.sizes(), ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ").");
}

}  // namespace persimmon::cuda
