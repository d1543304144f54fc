// attention (see attention.cuh) for Hopper: tiles come by TMA, products are wgmma's, warps are specialised.
#pragma once
#include "attention.cuh"

namespace persimmon::cuda {

// Starts the kernel on `stream`, which belongs to a device of compute capability 9.0. Errors as of launch_attention,
// and cudaErrorNotSupported where TMA does not take the tensors, there are no keys, or the code is not for this GPU:
// launch_attention does.
cudaError_t launch_attention_hopper(const AttentionParams& params, simt::Dtype dtype, cudaStream_t stream);

}  // namespace persimmon::cuda
