#include "sample.h"

#include "philox.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr float kInf = __builtin_inff();

// Whether a comparison holds in some lane.
PERSIMMON_INLINE bool any(vi lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)lanes) != 0;
#else
  int32_t some = 0;
  for (int j = 0; j < kLanes; ++j) some |= lanes[j];
  return some != 0;
#endif
}

// The first `count` lanes, -inf in those that hold no logit.
template <class T>
PERSIMMON_INLINE vf load_logits(const T* logits, int count) {
  vf v = load_up_to(logits, count);
  for (int j = count; j < kLanes; ++j) v[j] = -kInf;
  return v;
}

// Finds the maximum of a row.
template <class T>
PERSIMMON_INLINE SampleStatus find_max(const T* logits, int64_t V, float& max) {
  vf top = broadcast(-kInf);
  vi nan{}, inf{};
  for_each_vector(V, [&](int64_t i, int count) {
    const vf v = load_logits(logits + i, count);
    nan |= v != v;
    inf |= v == kInf;
    top = vmax(v, top);
  });
  if (any(nan)) return SampleStatus::nan;
  if (any(inf)) return SampleStatus::inf;
  max = reduce_max(top);
  return max == -kInf ? SampleStatus::nothing : SampleStatus::ok;
}

// The largest t with  sum of weight[i] over z[i] >= t  at least `target`; weight null: every token weighs 1.
// As z <= 0, the bits of |z| in ascending order are z in descending order: three histograms, 11, 10 and 10 bits, each
// over the tokens that share the bits found so far.
PERSIMMON_INLINE float threshold(const float* z, const float* weight, int64_t V, double target) {
  uint32_t found = 0;
  double before = 0;  // weight of the tokens above those that share the bits found
  for (int shift = 20; shift >= 0; shift -= 10) {
    const uint32_t bins = shift == 20 ? 2048 : 1024;
    double histogram[2048] = {};
    for_each_vector(V, [&](int64_t i, int count) {
      const vu key = bit_cast<vu>(load_up_to(z + i, count)) & 0x7fffffff;
      const vi shared = shift == 20 ? vi{} - 1 : (key >> (shift + 10)) == found;
      if (!any(shared)) return;
      const vu bin = (key >> shift) & (bins - 1);
      for (int j = 0; j < count; ++j) {
        if (shared[j]) histogram[bin[j]] += weight != nullptr ? double(weight[i + j]) : 1.0;
      }
    });
    // Where rounding keeps the total just below the target, the last bin that holds anything.
    uint32_t bin = 0;
    double before_bin = before, total = before;
    for (uint32_t b = 0; b < bins && total < target; ++b) {
      if (histogram[b] == 0) continue;
      bin = b;
      before_bin = total;
      total += histogram[b];
    }
    before = before_bin;
    found = found * bins + bin;
  }
  return -bit_cast<float>(found);
}

// Sum of exp(z) over z >= least, each kept in `mass` (zero for the others).
PERSIMMON_INLINE double masses(const float* z, float least, float* mass, int64_t V) {
  double total = 0;
  for_each_vector(V, [&](int64_t i, int count) {
    const vf v = load_up_to(z + i, count);
    store_up_to(mass + i, v >= least ? vexp(v) : vf{}, count);
  });
  for (int64_t i = 0; i < V; ++i) total += mass[i];
  return total;
}

// With n = 2^24 - (word >> 8):  1 - u = (n - 1/2) 2^-24  >= n 2^-25, so the noise -log(-log u) <= -log(1 - u) is at
// most (25 - floor(log2 n)) log 2. Two logarithms are spent only where that could beat the best so far.
PERSIMMON_INLINE int64_t draw(const float* z, float least, int64_t V, uint64_t seed, uint64_t counter) {
  constexpr float kLog2 = 0.6931472f, kSlack = 1e-4f;  // the slack covers the rounding of the bound and of `best`
  constexpr float kMaxNoise = 25 * kLog2;
  double best = -__builtin_inf();
  int64_t token = 0;
  for_each_vector(V, [&](int64_t first, int count) {
    const vf logit = load_logits(z + first, count);
    if (!any((logit >= least) & (logit + (kMaxNoise + kSlack) >= float(best)))) return;
    const vu word = philox(seed, counter, uint32_t(first));
    const vf remaining = __builtin_convertvector(bit_cast<vi>(0x1000000u - (word >> 8)), vf);
    const vi exponent = bit_cast<vi>(bit_cast<vu>(remaining) >> 23) - 127;
    const vf bound = logit + (__builtin_convertvector(25 - exponent, vf) * kLog2 + kSlack);
    const vi possible = (logit >= least) & (bound >= float(best));
    if (!any(possible)) return;
    for (int i = 0; i < count; ++i) {
      if (!possible[i]) continue;
      const double u = (double(word[i] >> 8) + 0.5) * 0x1p-24;
      const double score = double(logit[i]) - __builtin_log(-__builtin_log(u));
      if (score > best) {
        best = score;
        token = first + i;
      }
    }
  });
  return token;
}

template <class T>
PERSIMMON_INLINE SampleStatus sample_row(const SampleParams& p, const T* logits, const int64_t* rng, int64_t& token) {
  const int64_t V = p.V;
  float* z = p.scratch;
  float max = 0;
  const SampleStatus status = find_max(logits, V, max);
  if (status != SampleStatus::ok) return status;
  if (p.temperature == 0) {
    for (token = 0; load1(logits + token) != max;) ++token;
    return status;
  }
  for_each_vector(V, [&](int64_t i, int count) {
    store_up_to(z + i, (load_up_to(logits + i, count) - max) / p.temperature, count);
  });
  float least = -kInf;
  if (p.top_k > 0 && p.top_k < V) least = threshold(z, nullptr, V, double(p.top_k));
  if (p.top_p < 1) {
    float* mass = p.scratch + V;
    const double total = masses(z, least, mass, V);
    least = threshold(z, mass, V, p.top_p * total);
  }
  if (p.min_p > 0) {
    const float log_min = float(__builtin_log(p.min_p));
    least = log_min > least ? log_min : least;
  }
  token = draw(z, least, V, uint64_t(rng[0]), uint64_t(rng[1]));
  return status;
}

void sample(const SampleParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = begin; row < end; ++row) {
      const T* logits = static_cast<const T*>(p.logits) + row * p.V;
      p.status[row] = sample_row(p, logits, p.rng + row * 2, p.token[row]);
    }
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
