// kWidth elements of T in one access: a single element, or a 16-byte vector.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

template <class T, int kWidth>
struct Elements {
  static_assert(kWidth == simt::kVectorWidth<T>, "one element, or 16 bytes of them");
  SIMT_DEVICE void load(const T* address) { packed = simt::load16(address); }
  SIMT_DEVICE void store(T* address) const { simt::store16(address, packed); }
  SIMT_DEVICE void unpack(float (&values)[kWidth]) const { simt::unpack_vector<T>(packed, values); }
  SIMT_DEVICE void pack(const float (&values)[kWidth]) { packed = simt::pack_vector<T>(values); }
  uint4 packed;
};

template <class T>
struct Elements<T, 1> {
  SIMT_DEVICE void load(const T* address) { element = *address; }
  SIMT_DEVICE void store(T* address) const { *address = element; }
  SIMT_DEVICE void unpack(float (&values)[1]) const { values[0] = simt::to_float(element); }
  SIMT_DEVICE void pack(const float (&values)[1]) { element = simt::from_float<T>(values[0]); }
  T element;
};

}  // namespace persimmon::cuda
