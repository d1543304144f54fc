// What the tests of the kernels on a fused projection share: its inputs, and float64 references of what happens to a
// row of a head.
#pragma once

#include <array>
#include <cmath>

#include "cuda/qkv_inputs.cuh"
#include "kernel_test.h"

namespace kernel_test {

using persimmon::cuda::kHeadDim;
constexpr int kHalfRotary = persimmon::cuda::kRotaryDim / 2;
constexpr float kHeadEps = 1e-5f;
using HeadRow = std::array<double, kHeadDim>;

template <class T>
HeadRow head_row(const T* data) {
  HeadRow row;
  for (int d = 0; d < kHeadDim; ++d) row[d] = simt::to_float(data[d]);
  return row;
}

// Rotates by the given angles, [kHalfRotary] each; direction -1 rotates back.
inline HeadRow rotated(HeadRow x, const float* cos, const float* sin, double direction = 1.0) {
  for (int i = 0; i < kHalfRotary; ++i) {
    const double a = x[i], b = x[i + kHalfRotary];
    x[i] = a * cos[i] - direction * b * sin[i];
    x[i + kHalfRotary] = b * cos[i] + direction * a * sin[i];
  }
  return x;
}

struct Normalised {
  HeadRow z;
  double scale;
};
inline Normalised normalised(HeadRow x, double eps) {
  double mean = 0.0, variance = 0.0;
  for (const double value : x) mean += value / kHeadDim;
  for (const double value : x) variance += (value - mean) * (value - mean) / kHeadDim;
  const double scale = 1.0 / std::sqrt(variance + eps);
  for (double& value : x) value = (value - mean) * scale;
  return {x, scale};
}

// A projection of B sequences of `tokens` tokens, norms, and angles that the batch may share.
template <class T>
class QkvProblem {
 public:
  QkvProblem(int64_t B, int64_t tokens, int64_t H, bool shared_angles = false)
      : qkv(B * tokens * H * 3 * kHeadDim),
        norms{simt::GlobalBuffer<T>(kHeadDim), simt::GlobalBuffer<T>(kHeadDim), simt::GlobalBuffer<T>(kHeadDim),
              simt::GlobalBuffer<T>(kHeadDim)},
        cos_((shared_angles ? 1 : B) * tokens * kHalfRotary),
        sin_(cos_.size()),
        B_(B),
        tokens_(tokens),
        H_(H),
        angle_batch_stride_(shared_angles ? 0 : tokens * kHalfRotary) {
    std::mt19937 generator(static_cast<unsigned>(B * 1009 + tokens * 31 + H));
    fill_random(qkv, 0.3, generator);
    for (int i = 0; i < 4; ++i) fill_random(norms[i], i % 2 == 0 ? 1.0 : 0.0, generator, 0.5);
    for (size_t i = 0; i < cos_.size(); ++i) {
      cos_[i] = static_cast<float>(std::cos(0.37 * static_cast<double>(i)));
      sin_[i] = static_cast<float>(std::sin(0.37 * static_cast<double>(i)));
    }
  }

  persimmon::cuda::QkvInputs inputs() const {
    return {qkv.data(),
            norms[0].data(),
            norms[1].data(),
            norms[2].data(),
            norms[3].data(),
            cos_.data(),
            sin_.data(),
            angle_batch_stride_,
            B_,
            tokens_,
            H_,
            kHeadEps};
  }

  // The row of q (part 0), k (1) or v (2).
  T* row(int64_t b, int64_t t, int64_t h, int part) const {
    return qkv.data() + (((b * tokens_ + t) * H_ + h) * 3 + part) * kHeadDim;
  }
  const float* cos_of(int64_t b, int64_t t) const { return cos_.data() + b * angle_batch_stride_ + t * kHalfRotary; }
  const float* sin_of(int64_t b, int64_t t) const { return sin_.data() + b * angle_batch_stride_ + t * kHalfRotary; }

  // The row of q or k, normed and rotated.
  HeadRow normed_and_rotated(int64_t b, int64_t t, int64_t h, int part) const {
    HeadRow y = normalised(head_row(row(b, t, h, part)), kHeadEps).z;
    const T *weight = norms[2 * part].data(), *bias = norms[2 * part + 1].data();
    for (int d = 0; d < kHeadDim; ++d) y[d] = y[d] * simt::to_float(weight[d]) + simt::to_float(bias[d]);
    return rotated(y, cos_of(b, t), sin_of(b, t));
  }

  const simt::GlobalBuffer<T> qkv;
  const simt::GlobalBuffer<T> norms[4];  // weight and bias of q, of k

 private:
  const simt::GlobalBuffer<float> cos_, sin_;
  const int64_t B_, tokens_, H_, angle_batch_stride_;
};

// What a launcher gets that is to look at nothing: one token of one head, at addresses that are multiples of 16.
inline persimmon::cuda::QkvInputs one_head_at_multiples_of_16() {
  void* const address = reinterpret_cast<void*>(uintptr_t{4096});
  const float* const angles = static_cast<const float*>(address);
  return {address, address, address, address, address, angles, angles, 0, 1, 1, 1, kHeadEps};
}

// A float32 result rounded to T.
template <class T>
void expect_row(WorstError& worst, const T* got, const HeadRow& want) {
  for (int d = 0; d < kHeadDim; ++d) {
    const double allowed = Format<T>::kRoundoff * std::abs(want[d]) + 4e-6 * (1.0 + std::abs(want[d]));
    worst.add(simt::to_float(got[d]), want[d], allowed);
  }
}

}  // namespace kernel_test
