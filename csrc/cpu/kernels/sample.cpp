#include "sample.h"

#include "philox.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr float kInf = __builtin_inff();

// Copies a row to fp32 and finds its maximum.
template <class T>
PERSIMMON_INLINE SampleStatus widen(const T* logits, float* z, int64_t V, float& max) {
  vf top = broadcast(-kInf);
  vi nan{}, inf{};
  for_each_vector(V, [&](int64_t i, int count) {
    vf v = load_up_to(logits + i, count);
    for (int j = count; j < kLanes; ++j) v[j] = -kInf;  // the padding lanes of a tail hold no logit
    nan |= v != v;
    inf |= v == kInf;
    top = vmax(v, top);
    store_up_to(z + i, v, count);
  });
  for (int j = 0; j < kLanes; ++j) {
    if (nan[j]) return SampleStatus::nan;
  }
  for (int j = 0; j < kLanes; ++j) {
    if (inf[j]) return SampleStatus::inf;
  }
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
    for (int64_t i = 0; i < V; ++i) {
      const uint32_t key = bit_cast<uint32_t>(z[i]) & 0x7fffffff;
      if (shift == 20 || key >> (shift + 10) == found) {
        histogram[key >> shift & (bins - 1)] += weight != nullptr ? double(weight[i]) : 1.0;
      }
    }
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
  constexpr float kLog2 = 0.6931472f, kSlack = 1e-4f;  // the slack covers the rounding of the bound
  constexpr float kMaxNoise = 25 * kLog2;
  double best = -__builtin_inf();
  int64_t token = 0;
  for (int64_t first = 0; first < V; first += kPhiloxLanes) {
    const int n = V - first < kPhiloxLanes ? int(V - first) : kPhiloxLanes;
    float top = -kInf;
    for (int i = 0; i < n; ++i) top = z[first + i] > top ? z[first + i] : top;
    if (top < least || top + kMaxNoise + kSlack < best) continue;
    uint32_t word[kPhiloxLanes];
    philox(seed, counter, uint32_t(first), word);
    float bound[kPhiloxLanes];
    for (int i = 0; i < n; ++i) {
      const float remaining = float(int32_t(0x1000000u - (word[i] >> 8)));
      const int32_t exponent = int32_t(bit_cast<uint32_t>(remaining) >> 23) - 127;
      bound[i] = z[first + i] + (float(25 - exponent) * kLog2 + kSlack);
    }
    for (int i = 0; i < n; ++i) {
      if (z[first + i] < least || bound[i] < best) continue;
      const double u = (double(word[i] >> 8) + 0.5) * 0x1p-24;
      const double score = double(z[first + i]) - __builtin_log(-__builtin_log(u));
      if (score > best) {
        best = score;
        token = first + i;
      }
    }
  }
  return token;
}

template <class T>
PERSIMMON_INLINE SampleStatus sample_row(const SampleParams& p, const T* logits, const int64_t* rng, int64_t& token) {
  const int64_t V = p.V;
  float* z = p.scratch;
  float max = 0;
  const SampleStatus status = widen(logits, z, V, max);
  if (status != SampleStatus::ok) return status;
  if (p.temperature == 0) {
    for (token = 0; z[token] != max;) ++token;
    return status;
  }
  for_each_vector(
      V, [&](int64_t i, int count) { store_up_to(z + i, (load_up_to(z + i, count) - max) / p.temperature, count); });
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
