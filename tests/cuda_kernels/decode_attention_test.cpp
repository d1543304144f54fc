// decode_attention_ under the emulator against a float64 reference.
// Cases: float16 bfloat16 splits launcher
#include "cuda/decode_attention.cuh"

#include "head_reference.h"
#include "kernel_test.h"

namespace {

using kernel_test::expect;
using kernel_test::fill_random;
using kernel_test::Format;
using kernel_test::HeadRow;
using kernel_test::kHalfRotary;
using kernel_test::kHeadDim;
using kernel_test::normed_and_rotated;
using kernel_test::same_bits;
using kernel_test::WorstError;
using persimmon::cuda::decode_attention_splits;
using persimmon::cuda::DecodeAttentionParams;
using persimmon::cuda::HeadRowsOut;
using persimmon::cuda::launch_decode_attention;
using simt::GlobalBuffer;

constexpr float kEps = 1e-5f;
constexpr float kScale = 0.125f;

struct Shape {
  int64_t H, T, S;
  std::vector<int64_t> first_slot;  // of each sequence
  std::vector<int64_t> start = {};  // of each sequence, or empty: 0
  bool shared_angles = false;

  int64_t B() const { return static_cast<int64_t>(first_slot.size()); }
  int64_t start_of(int64_t b) const { return start.empty() ? 0 : start[b]; }
};

std::string name_of(const char* result, const Shape& s, int seed) {
  return std::string(result) + ", B " + std::to_string(s.B()) + " H " + std::to_string(s.H) + " T " +
         std::to_string(s.T) + " S " + std::to_string(s.S) + " first slot " + std::to_string(s.first_slot[0]) +
         (s.start.empty() ? "" : " start") + " seed " + std::to_string(seed);
}

template <class T>
struct Problem {
  explicit Problem(const Shape& s)
      : shape(s),
        qkv(s.B() * s.T * s.H * 3 * kHeadDim),
        norms{GlobalBuffer<T>(kHeadDim), GlobalBuffer<T>(kHeadDim), GlobalBuffer<T>(kHeadDim),
              GlobalBuffer<T>(kHeadDim)},
        cos((s.shared_angles ? 1 : s.B()) * s.T * kHalfRotary),
        sin(cos.size()),
        slots(s.B() * s.T),
        start(s.start.size()),
        old_k(s.B() * s.H * s.S * kHeadDim),
        old_v(old_k.size()) {
    std::mt19937 generator(static_cast<unsigned>(s.T * 1009 + s.S));
    fill_random(qkv, 0.2, generator);
    for (int i = 0; i < 4; ++i) fill_random(norms[i], i % 2 == 0 ? 1.0 : 0.0, generator, 0.5);
    for (size_t i = 0; i < cos.size(); ++i) {
      cos[i] = static_cast<float>(std::cos(0.37 * static_cast<double>(i)));
      sin[i] = static_cast<float>(std::sin(0.37 * static_cast<double>(i)));
    }
    for (int64_t i = 0; i < s.B() * s.T; ++i) slots[i] = s.first_slot[i / s.T] + i % s.T;
    for (size_t b = 0; b < s.start.size(); ++b) start[b] = s.start[b];
    std::normal_distribution<float> normal;
    for (int64_t row = 0; row < s.B() * s.H * s.S; ++row) {  // rows that nobody sees stay NaN
      const int64_t b = row / s.S / s.H, slot = row % s.S;
      if (slot < s.start_of(b) || slot >= s.first_slot[b]) continue;
      for (int d = 0; d < kHeadDim; ++d) {
        old_k[row * kHeadDim + d] = simt::from_float<T>(normal(generator));
        old_v[row * kHeadDim + d] = simt::from_float<T>(normal(generator));
      }
    }
  }

  const T* input(int64_t b, int64_t t, int64_t h, int part) const {
    return &qkv[(((b * shape.T + t) * shape.H + h) * 3 + part) * kHeadDim];
  }
  HeadRow expected(int64_t b, int64_t t, int64_t h, int part) const {
    const int64_t angle = ((shape.shared_angles ? 0 : b * shape.T) + t) * kHalfRotary;
    return normed_and_rotated(input(b, t, h, part), norms[2 * part].data(), norms[2 * part + 1].data(), &cos[angle],
                              &sin[angle], kEps);
  }
  // The attention of token t over the caches as they are now.
  HeadRow attended(int64_t b, int64_t t, int64_t h, const GlobalBuffer<T>& k, const GlobalBuffer<T>& v) const {
    const HeadRow q = expected(b, t, h, 0);
    std::vector<double> scores;
    const int64_t first = std::max<int64_t>(shape.start_of(b), 0);
    const int64_t last = std::min(shape.first_slot[b] + t, shape.S - 1);
    double top = -INFINITY, total = 0.0;
    for (int64_t s = first; s <= last; ++s) {
      double dot = 0.0;
      for (int d = 0; d < kHeadDim; ++d)
        dot += q[d] * simt::to_float(k[((b * shape.H + h) * shape.S + s) * kHeadDim + d]);
      scores.push_back(dot * kScale);
      top = std::max(top, scores.back());
    }
    HeadRow out{};
    for (double& score : scores) total += score = std::exp(score - top);
    for (int64_t s = first; s <= last; ++s) {
      for (int d = 0; d < kHeadDim; ++d) {
        out[d] += scores[s - first] / total * simt::to_float(v[((b * shape.H + h) * shape.S + s) * kHeadDim + d]);
      }
    }
    return out;
  }

  const Shape shape;
  const GlobalBuffer<T> qkv;
  const GlobalBuffer<T> norms[4];  // weight and bias of q, of k
  const GlobalBuffer<float> cos, sin;
  const GlobalBuffer<int64_t> slots, start;
  const GlobalBuffer<T> old_k, old_v;
};

// Caches after a launch: new rows are there, all others have the bits that they had.
template <class T>
void check_caches(const Problem<T>& p, const GlobalBuffer<T>& k, const GlobalBuffer<T>& v, int seed) {
  const Shape& s = p.shape;
  WorstError worst;
  for (int64_t row = 0; row < s.B() * s.H * s.S; ++row) {
    const int64_t b = row / s.S / s.H, h = row / s.S % s.H, t = row % s.S - s.first_slot[b];
    const T *new_k = &k[row * kHeadDim], *new_v = &v[row * kHeadDim];
    if (t < 0 || t >= s.T) {
      const bool kept = std::memcmp(new_k, &p.old_k[row * kHeadDim], kHeadDim * sizeof(T)) == 0 &&
                        std::memcmp(new_v, &p.old_v[row * kHeadDim], kHeadDim * sizeof(T)) == 0;
      expect(kept, name_of("another row of the cache was written", s, seed));
      continue;
    }
    expect(std::memcmp(new_v, p.input(b, t, h, 2), kHeadDim * sizeof(T)) == 0, name_of("v", s, seed));
    const HeadRow want = p.expected(b, t, h, 1);
    for (int d = 0; d < kHeadDim; ++d) {
      worst.add(simt::to_float(new_k[d]), want[d],
                Format<T>::kRoundoff * std::abs(want[d]) + 4e-6 * (1.0 + std::abs(want[d])));
    }
  }
  worst.expect_below_one(name_of("k", s, seed));
}

template <class T>
void check_shape(const Shape& s, int seeds) {
  const Problem<T> p(s);
  const GlobalBuffer<T> first(s.B() * s.T * s.H * kHeadDim);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> k(p.old_k.size()), v(p.old_v.size()), out(first.size());
    std::memcpy(k.data(), p.old_k.data(), k.size() * sizeof(T));
    std::memcpy(v.data(), p.old_v.data(), v.size() * sizeof(T));
    const int64_t splits = decode_attention_splits(s.B(), s.H, s.S);
    const GlobalBuffer<float> partials(splits > 1 ? s.B() * s.H * splits * s.T * (kHeadDim + 2) : 0);
    const auto rows = [&](const GlobalBuffer<T>& cache) {
      return HeadRowsOut{cache.data(), s.H * s.S * kHeadDim, s.S * kHeadDim, kHeadDim};
    };
    const DecodeAttentionParams params{p.qkv.data(),
                                       p.norms[0].data(),
                                       p.norms[1].data(),
                                       p.norms[2].data(),
                                       p.norms[3].data(),
                                       p.cos.data(),
                                       p.sin.data(),
                                       p.slots.data(),
                                       s.start.empty() ? nullptr : p.start.data(),
                                       rows(k),
                                       rows(v),
                                       out.data(),
                                       partials.data(),
                                       s.shared_angles ? 0 : s.T * kHalfRotary,
                                       s.B(),
                                       s.T,
                                       s.H,
                                       s.S,
                                       kEps,
                                       kScale};
    expect(launch_decode_attention(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    check_caches(p, k, v, seed);
    WorstError worst;  // allowed: the rounding of the result, and that of q, which changes every score
    for (int64_t row = 0; row < s.B() * s.T * s.H; ++row) {
      const HeadRow want = p.attended(row / s.H / s.T, row / s.H % s.T, row % s.H, k, v);
      for (int d = 0; d < kHeadDim; ++d) {
        worst.add(simt::to_float(out[row * kHeadDim + d]), want[d],
                  Format<T>::kRoundoff * (2.0 + std::abs(want[d])) + 1e-5);
      }
    }
    worst.expect_below_one(name_of("out", s, seed));
    if (seed == 0) std::memcpy(first.data(), out.data(), out.size() * sizeof(T));
    expect(same_bits(out, first), name_of("the bits depend on the schedule", s, seed));
    for (const auto* buffer : {&k, &v, &out}) buffer->check();
    partials.check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (int64_t T_new = 1; T_new <= 8; ++T_new) check_shape<T>({2, T_new, 40, {23, 0}, {}, T_new % 2 == 0}, 2);
  for (const int64_t cached : {0, 1, 15, 16, 17, 63, 64, 65, 127}) check_shape<T>({1, 1, 128, {cached}}, seeds);
  check_shape<T>({3, 1, 700, {699, 130, 5}}, 2);                          // several splits, ragged
  check_shape<T>({1, 3, 1031, {1000, 17, 0, 512}, {200, 3, 0, 511}}, 2);  // left padding
  check_shape<T>({2, 1, 64, {-1, 7, 64}, {}}, seeds);                     // without a slot, and outside of the cache
  check_shape<T>({1, 2, 64, {10, 63}, {12, 0}}, seeds);  // the start is beyond; the last token has no slot
}

void check_splits(int) {
  expect(decode_attention_splits(1, 64, 4096) == 9, "64 heads: nine splits are 576 blocks");
  expect(decode_attention_splits(1, 64, 16384) == 9, "a longer cache does not change that");
  expect(decode_attention_splits(1, 64, 512) == 4, "a split of a full cache has at least 128 rows");
  expect(decode_attention_splits(1, 64, 100) == 1, "a short cache");
  expect(decode_attention_splits(16, 64, 4096) == 1, "a large batch");
  expect(decode_attention_splits(1, 1, 1 << 20) == 64, "the combination stays cheap");
  expect(decode_attention_splits(0, 64, 4096) == 1, "no sequences");
}

void check_launcher(int) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  float* const floats = static_cast<float*>(aligned);
  DecodeAttentionParams params{aligned,
                               aligned,
                               aligned,
                               aligned,
                               aligned,
                               floats,
                               floats,
                               nullptr,
                               nullptr,
                               {aligned, 64, 64, 64},
                               {aligned, 64, 64, 64},
                               aligned,
                               floats,
                               0,
                               0,
                               1,
                               1,
                               8,
                               kEps,
                               kScale};
  const auto launch = [&](simt::Dtype dtype) { return launch_decode_attention(params, dtype, nullptr); };
  expect(launch(simt::Dtype::kBFloat16) == cudaSuccess, "no sequences: nothing to do");
  params.B = 1;
  expect(launch(simt::Dtype::kFloat32) == cudaErrorInvalidValue, "float32");
  params.T = 9;
  expect(launch(simt::Dtype::kBFloat16) == cudaErrorInvalidValue, "more than 8 tokens");
  params.T = 1;
  params.k.row_stride = 68;
  expect(launch(simt::Dtype::kBFloat16) == cudaErrorInvalidValue, "a cache stride that is not a multiple of 16 bytes");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"splits", check_splits},
                           {"launcher", check_launcher}});
}
