// How the cache holds a row of 64 elements, of which each of 8 neighbouring lanes has 8. A format is what a lane holds:
//
//   of(elements)     from the 16-bit elements; all lanes of the warp call it
//   unpack, scale    the elements are the unpacked values times the scale
//   Element          what a lane loads 8 of, and kHasScale: whether a float32 for each row lies beside them
#pragma once
#include "qkv_inputs.cuh"
#include "weight_formats.cuh"

namespace persimmon::cuda {

constexpr int kCacheWidth = 8;
constexpr int kCacheLanes = kHeadDim / kCacheWidth;

// The 16-bit elements themselves.
template <class T>
struct PlainRow {
  using Element = T;
  static constexpr bool kHasScale = false;
  uint4 elements;

  SIMT_DEVICE static PlainRow of(const uint4& elements) { return {elements}; }
  SIMT_DEVICE void unpack(float (&values)[kCacheWidth]) const { simt::unpack_vector<T>(elements, values); }
  SIMT_DEVICE static float scale() { return 1.0f; }
};

// int8 codes: value = code * scale, with scale = (largest magnitude of the row) / 127. Of a row with a NaN or an
// infinity no value is finite.
template <class T>
struct Int8Row {
  using Element = int8_t;
  static constexpr bool kHasScale = true;
  uint2 codes;
  float row_scale;

  SIMT_DEVICE static Int8Row of(const uint4& elements) {
    constexpr float kLargest = 127.0f, kSmallestNormal = 1.17549435e-38f;
    float x[kCacheWidth];
    simt::unpack_vector<T>(elements, x);
    float top = 0.0f;
#pragma unroll
    for (int j = 0; j < kCacheWidth; ++j) top = larger(top, fabsf(x[j]));
#pragma unroll
    for (int offset = kCacheLanes / 2; offset > 0; offset /= 2) top = larger(top, __shfl_xor_sync(~0u, top, offset));
    const float scale = top / kLargest, divisor = fmaxf(scale, kSmallestNormal);
    uint32_t words[2] = {};
#pragma unroll
    for (int j = 0; j < kCacheWidth; ++j) {
      const float code = fminf(fmaxf(rintf(x[j] / divisor), -kLargest), kLargest);  // in range but for a NaN
      words[j / 4] |= (static_cast<uint32_t>(static_cast<int>(code)) & 0xffu) << j % 4 * 8;
    }
    return {make_uint2(words[0], words[1]), scale};
  }
  SIMT_DEVICE void unpack(float (&values)[kCacheWidth]) const {
    unpack_int8(codes.x, values);
    unpack_int8(codes.y, values + 4);
  }
  SIMT_DEVICE float scale() const { return row_scale; }

 private:
  // NaN if either is.
  SIMT_DEVICE static float larger(float a, float b) { return a > b || a != a ? a : b; }
};

// K or V of one head of one sequence.
template <class Row>
class CachedHead {
 public:
  SIMT_DEVICE CachedHead(const HeadRowsOut& rows, const HeadRowsOut& scales, int64_t b, int64_t h)
      : rows_(static_cast<typename Row::Element*>(rows.data) + b * rows.batch_stride + h * rows.head_stride),
        scales_(static_cast<float*>(scales.data) +
                (Row::kHasScale ? b * scales.batch_stride + h * scales.head_stride : 0)),
        row_stride_(rows.row_stride),
        scale_stride_(scales.row_stride) {}

  SIMT_DEVICE Row load(int64_t slot, int lane) const {
    const auto* const part = rows_ + slot * row_stride_ + lane * kCacheWidth;
    if constexpr (Row::kHasScale) {
      return {simt::load8(part), scales_[slot * scale_stride_]};
    } else {
      return {simt::load16(part)};
    }
  }
  SIMT_DEVICE void store(int64_t slot, int lane, const Row& row) const {
    auto* const part = rows_ + slot * row_stride_ + lane * kCacheWidth;
    if constexpr (Row::kHasScale) {
      simt::store8(part, row.codes);
      if (lane == 0) scales_[slot * scale_stride_] = row.row_scale;
    } else {
      simt::store16(part, row.elements);
    }
  }

 private:
  typename Row::Element* rows_;
  float* scales_;
  int64_t row_stride_, scale_stride_;
};

}  // namespace persimmon::cuda
