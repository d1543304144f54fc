#include "decode_attention_kernel.cuh"

namespace persimmon::cuda {

cudaError_t launch_decode_attention_int8(const DecodeAttentionParams& params, simt::Dtype dtype, cudaStream_t stream) {
  const bool aligned = rows_start_at_multiples_of(8, params.k, 1) && rows_start_at_multiples_of(8, params.v, 1) &&
                       rows_start_at_multiples_of(4, params.k_scale, 4) &&
                       rows_start_at_multiples_of(4, params.v_scale, 4);
  return aligned ? launch_decode_attention_format<Int8Row>(params, dtype, stream) : cudaErrorInvalidValue;
}

}  // namespace persimmon::cuda
