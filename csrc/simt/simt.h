// The only header a CUDA kernel of this project includes. One kernel source has three readers:
//   nvcc                     device.h: CUDA itself plus thin wrappers;
//   g++ with SIMT_EMULATOR   emulator.h: the same names, run by an emulator on the CPU (the kernel tests);
//   g++ without it           only cudaError_t, cudaStream_t and Dtype: what a binding needs to call a launcher.
//
// Rules for kernel authors: no raw asm, no <<<>>>, no vendor 16-bit intrinsics, shared memory only through SIMT_SHARED
// and regions of SIMT_DYNAMIC_SHARED, block sizes that are multiples of 32, no early return before a __syncthreads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace simt {

// Element types of a tensor, as a launcher receives them.
enum class Dtype { kFloat32, kFloat16, kBFloat16 };

constexpr int element_bytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

}  // namespace simt

#if defined(__CUDACC__)
#include "device.h"
#include "device_async.h"
#include "device_grid.h"
#include "device_hopper.h"
#include "vectors.h"
#elif defined(SIMT_EMULATOR)
#include "emulator.h"
#include "vectors.h"
#else
#include <cuda_runtime_api.h>
#endif
