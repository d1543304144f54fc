// decode_attention_ against a float64 reference, for any format of the cache.
//
// A format is K or V of all heads, rows (b, h, s) at first all bits set:
//   copy_from      the other's bits
//   fill           a row with random elements
//   value          an element as attention is to see it
//   same           whether a row has the other's bits
//   expect_copy    that a row is what becomes of these elements
//   expect_near    the same of a row that the kernel computed in float32 and rounded
//   rows, scales   what the kernel gets; scales are null where the format has none
//   check          that nothing was written in front
#pragma once

#include "cuda/decode_attention.cuh"
#include "head_reference.h"

namespace kernel_test {

constexpr float kScoreScale = 0.125f;

using DecodeLauncher = cudaError_t (*)(const persimmon::cuda::DecodeAttentionParams&, simt::Dtype, cudaStream_t);

struct DecodeShape {
  int64_t H, T, S;
  std::vector<int64_t> first_slot;  // of each sequence
  std::vector<int64_t> start = {};  // of each sequence, or empty: 0
  bool shared_angles = false;

  int64_t B() const { return static_cast<int64_t>(first_slot.size()); }
  int64_t start_of(int64_t b) const { return start.empty() ? 0 : start[b]; }
};

inline std::string name_of(const char* result, const DecodeShape& s, int seed) {
  return std::string(result) + ", B " + std::to_string(s.B()) + " H " + std::to_string(s.H) + " T " +
         std::to_string(s.T) + " S " + std::to_string(s.S) + " first slot " + std::to_string(s.first_slot[0]) +
         (s.start.empty() ? "" : " start") + " seed " + std::to_string(seed);
}

// Rows of `width` elements, (b, h, s) in this order.
template <class Element>
persimmon::cuda::HeadRowsOut cache_rows(const simt::GlobalBuffer<Element>& data, const DecodeShape& s, int64_t width) {
  return {data.data(), s.H * s.S * width, s.S * width, width};
}

template <class T, class Cache>
struct DecodeProblem {
  explicit DecodeProblem(const DecodeShape& s)
      : shape(s), qkv(s.B(), s.T, s.H, s.shared_angles), slots(s.B() * s.T), start(s.start.size()), old_k(s), old_v(s) {
    std::mt19937 generator(static_cast<unsigned>(s.T * 1009 + s.S));
    for (int64_t i = 0; i < s.B() * s.T; ++i) slots[i] = s.first_slot[i / s.T] + i % s.T;
    for (size_t b = 0; b < s.start.size(); ++b) start[b] = s.start[b];
    for (int64_t row = 0; row < s.B() * s.H * s.S; ++row) {  // rows that nobody sees keep the bits they have
      const int64_t b = row / s.S / s.H, slot = row % s.S;
      if (slot < s.start_of(b) || slot >= s.first_slot[b]) continue;
      old_k.fill(row, generator);
      old_v.fill(row, generator);
    }
  }

  // The attention of token t over the caches as they are now.
  HeadRow attended(int64_t b, int64_t t, int64_t h, const Cache& k, const Cache& v) const {
    const HeadRow q = qkv.normed_and_rotated(b, t, h, 0);
    std::vector<double> scores;
    const int64_t first = std::max<int64_t>(shape.start_of(b), 0);
    const int64_t last = std::min(shape.first_slot[b] + t, shape.S - 1);
    const int64_t head = (b * shape.H + h) * shape.S;
    double top = -INFINITY, total = 0.0;
    for (int64_t s = first; s <= last; ++s) {
      double dot = 0.0;
      for (int d = 0; d < kHeadDim; ++d) dot += q[d] * k.value(head + s, d);
      scores.push_back(dot * kScoreScale);
      top = std::max(top, scores.back());
    }
    HeadRow out{};
    for (double& score : scores) total += score = std::exp(score - top);
    for (int64_t s = first; s <= last; ++s) {
      for (int d = 0; d < kHeadDim; ++d) out[d] += scores[s - first] / total * v.value(head + s, d);
    }
    return out;
  }

  const DecodeShape shape;
  const QkvProblem<T> qkv;
  const simt::GlobalBuffer<int64_t> slots, start;
  const Cache old_k, old_v;
};

// One launch on copies of the problem's caches, which a kernel writes that may still run when this one begins.
template <class T, class Cache>
struct DecodeRun {
  DecodeRun(const DecodeProblem<T, Cache>& p, DecodeLauncher launch)
      : k(p.shape), v(p.shape), out(p.shape.B() * p.shape.T * p.shape.H * kHeadDim) {
    const DecodeShape& s = p.shape;
    simt::set_predecessor([&] {
      k.copy_from(p.old_k);
      v.copy_from(p.old_v);
    });
    const int64_t splits = persimmon::cuda::decode_attention_splits(s.B(), s.H, s.S);
    const simt::GlobalBuffer<float> partials(splits > 1 ? s.B() * s.H * splits * s.T * (kHeadDim + 2) : 0);
    const persimmon::cuda::DecodeAttentionParams params{p.qkv.inputs(),
                                                        p.slots.data(),
                                                        s.start.empty() ? nullptr : p.start.data(),
                                                        k.rows(),
                                                        v.rows(),
                                                        k.scales(),
                                                        v.scales(),
                                                        out.data(),
                                                        partials.data(),
                                                        s.S,
                                                        kScoreScale};
    expect(launch(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    out.check();
    partials.check();
    k.check();
    v.check();
  }

  const Cache k, v;
  const simt::GlobalBuffer<T> out;
};

// New rows are there, all others have the bits that they had.
template <class T, class Cache>
void check_caches(const DecodeProblem<T, Cache>& p, const DecodeRun<T, Cache>& found, int seed) {
  const DecodeShape& s = p.shape;
  WorstError worst;
  for (int64_t row = 0; row < s.B() * s.H * s.S; ++row) {
    const int64_t b = row / s.S / s.H, h = row / s.S % s.H, t = row % s.S - s.first_slot[b];
    if (t < 0 || t >= s.T) {
      expect(found.k.same(row, p.old_k) && found.v.same(row, p.old_v),
             name_of("another row of the cache was written", s, seed));
      continue;
    }
    found.v.expect_copy(row, p.qkv.row(b, t, h, 2), name_of("v", s, seed));
    found.k.expect_near(worst, row, p.qkv.normed_and_rotated(b, t, h, 1));
  }
  worst.expect_below_one(name_of("k", s, seed));
}

template <class T, class Cache>
void check_decode(DecodeLauncher launch, const DecodeShape& s, int seeds) {
  const DecodeProblem<T, Cache> p(s);
  const simt::GlobalBuffer<T> first(s.B() * s.T * s.H * kHeadDim);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const DecodeRun<T, Cache> found(p, launch);
    check_caches(p, found, seed);
    WorstError worst;  // allowed: the rounding of the result, and that of q, which changes every score
    for (int64_t row = 0; row < s.B() * s.T * s.H; ++row) {
      const HeadRow want = p.attended(row / s.H / s.T, row / s.H % s.T, row % s.H, found.k, found.v);
      for (int d = 0; d < kHeadDim; ++d) {
        worst.add(simt::to_float(found.out[row * kHeadDim + d]), want[d],
                  Format<T>::kRoundoff * (2.0 + std::abs(want[d])) + 1e-5);
      }
    }
    worst.expect_below_one(name_of("out", s, seed));
    if (seed == 0) std::memcpy(first.data(), found.out.data(), first.size() * sizeof(T));
    expect(same_bits(found.out, first), name_of("the bits depend on the schedule", s, seed));
  }
}

template <class T, class Cache>
void check_decode_shapes(DecodeLauncher launch, int seeds) {
  const auto check = [&](const DecodeShape& shape) { check_decode<T, Cache>(launch, shape, seeds); };
  for (int64_t tokens = 1; tokens <= 8; ++tokens) check({2, tokens, 40, {23, 0}, {}, tokens % 2 == 0});
  for (const int64_t cached : {0, 1, 15, 16, 17, 63, 64, 65, 127}) check({1, 1, 128, {cached}});
  check({3, 1, 700, {699, 130, 5}});                          // several splits, ragged
  check({1, 3, 1031, {1000, 17, 0, 512}, {200, 3, 0, 511}});  // left padding
  check({2, 1, 64, {-1, 7, 64}, {}});                         // without a slot, and outside of the cache
  check({1, 2, 64, {10, 63}, {12, 0}});                       // the start is beyond; the last token has no slot
}

// What no launcher may take, beside caches that are not aligned; row_stride 64 is that of a whole cache.
inline void check_decode_launcher(DecodeLauncher launcher, int64_t unaligned_stride) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  const persimmon::cuda::HeadRowsOut rows{aligned, 64, 64, 64}, scales{aligned, 8, 8, 1};
  persimmon::cuda::DecodeAttentionParams params{
      one_head_at_multiples_of_16(), nullptr, nullptr,    rows, rows, scales, scales, aligned,
      static_cast<float*>(aligned),  8,       kScoreScale};
  const auto launch = [&](simt::Dtype dtype) { return launcher(params, dtype, nullptr); };
  params.in.B = 0;
  expect(launch(simt::Dtype::kBFloat16) == cudaSuccess, "no sequences: nothing to do");
  params.in.B = 1;
  expect(launch(simt::Dtype::kFloat32) == cudaErrorInvalidValue, "float32");
  params.in.T = 9;
  expect(launch(simt::Dtype::kBFloat16) == cudaErrorInvalidValue, "more than 8 tokens");
  params.in.T = 1;
  params.k.row_stride = unaligned_stride;
  expect(launch(simt::Dtype::kBFloat16) == cudaErrorInvalidValue, "a cache whose rows are not aligned");
}

}  // namespace kernel_test
