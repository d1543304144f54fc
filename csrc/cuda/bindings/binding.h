// Shared by the CUDA bindings. Bindings are the only CUDA files that include torch, and only its lean headers:
// ATen/cuda/CUDAContext.h would need the headers of cuBLAS and cuSPARSE, which a toolkit may lack.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include "../../checks.h"
#include "../../simt/simt.h"

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

// For the error that the launcher of `op` returned.
inline void check_launch(cudaError_t error, const char* op, const at::Tensor& x) {
  TORCH_CHECK(error == cudaSuccess, "The CUDA kernel of ", op, " could not be launched on ", x.device(),
              " for x of shape ", x.sizes(), ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ").");
}

}  // namespace persimmon::cuda
