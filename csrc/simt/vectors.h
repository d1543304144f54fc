// Helpers written once for nvcc and the emulator: 16-byte vectors of elements, warp sums, dispatch on the element type.
#pragma once

namespace simt {

constexpr int kWarpSize = 32;

// Elements of T in one 16-byte access.
template <class T>
constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

template <class T>
SIMT_DEVICE void unpack_vector(const uint4& packed, float (&values)[kVectorWidth<T>]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      values[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack2<T>(words[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

template <class T>
SIMT_DEVICE uint4 pack_vector(const float (&values)[kVectorWidth<T>]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(values[i]);
    } else {
      words[i] = pack2<T>(values[2 * i], values[2 * i + 1]);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Sum over the 32 lanes, the same bits in every lane. All lanes of the warp call it.
SIMT_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

template <class T>
struct TypeTag {
  using Type = T;
};

// Calls function(TypeTag<element type of dtype>{}) and returns its error.
template <class Function>
cudaError_t with_element_type(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function(TypeTag<float>{});
    case Dtype::kFloat16:
      return function(TypeTag<fp16>{});
    case Dtype::kBFloat16:
      return function(TypeTag<bf16>{});
  }
  return cudaErrorInvalidValue;
}

// The same for the element types of the tensor cores.
template <class Function>
cudaError_t with_16bit_type(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat16:
      return function(TypeTag<fp16>{});
    case Dtype::kBFloat16:
      return function(TypeTag<bf16>{});
    case Dtype::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace simt
