// sample under the emulator: the tokens of a float64 reference, and their distribution.
// Cases: float32 float16 bfloat16 vocabularies distribution equals rows launcher
#include "cuda/sample.cuh"

#include <algorithm>
#include <numeric>

#include "kernel_test.h"

namespace {

using kernel_test::expect;
using kernel_test::fill_random;
using kernel_test::Format;
using persimmon::cuda::kSampleBins;
using persimmon::cuda::launch_sample;
using persimmon::cuda::sample_blocks;
using persimmon::cuda::sample_levels;
using persimmon::cuda::SampleParams;
using persimmon::cuda::SampleRange;
using simt::GlobalBuffer;

struct Options {
  float temperature = 1.0f;
  int64_t top_k = 0;
  double top_p = 1.0, min_p = 0.0;
};

std::string name_of(int64_t B, int64_t V, const Options& o) {
  return "B " + std::to_string(B) + " V " + std::to_string(V) + " temperature " + std::to_string(o.temperature) +
         " top_k " + std::to_string(o.top_k) + " top_p " + std::to_string(o.top_p) + " min_p " +
         std::to_string(o.min_p);
}

// (seed, counter) for each row, others for every `batch`.
void fill_streams(const GlobalBuffer<int64_t>& rng, int batch) {
  for (size_t i = 0; i < rng.size(); i += 2) {
    rng[i] = static_cast<int64_t>((i + batch) * 0x9E3779B97F4A7C15ull);
    rng[i + 1] = static_cast<int64_t>(i / 2 + (uint64_t{1} << 33));
  }
}

template <class T>
std::vector<int64_t> sampled(const GlobalBuffer<T>& logits, const GlobalBuffer<int64_t>& rng, int64_t B, int64_t V,
                             const Options& o) {
  const int64_t blocks = sample_blocks(V), levels = sample_levels(V, o.temperature, o.top_k, o.top_p);
  const GlobalBuffer<int64_t> token(B), block_tokens(B * blocks);
  const GlobalBuffer<float> block_tops(B * blocks);
  const GlobalBuffer<double> block_scores(B * blocks);
  const GlobalBuffer<uint64_t> histograms(B * levels * kSampleBins);
  const GlobalBuffer<SampleRange> ranges(B * levels);
  const GlobalBuffer<uint32_t> arrivals(B);
  // What a kernel writes that may still run when the first one begins.
  const GlobalBuffer<T> late_logits(B * V);
  const GlobalBuffer<int64_t> late_rng(2 * B);
  simt::set_predecessor([&] {
    std::copy(logits.data(), logits.data() + B * V, late_logits.data());
    std::copy(rng.data(), rng.data() + 2 * B, late_rng.data());
  });
  const SampleParams params{late_logits.data(),
                            late_rng.data(),
                            token.data(),
                            block_tops.data(),
                            block_scores.data(),
                            block_tokens.data(),
                            histograms.data(),
                            ranges.data(),
                            arrivals.data(),
                            B,
                            V,
                            o.temperature,
                            o.top_k,
                            o.top_p,
                            o.min_p};
  expect(launch_sample(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
  token.check();
  histograms.check();
  ranges.check();
  arrivals.check();
  return {token.data(), token.data() + B};
}

// As the paper has it, with its own 32 x 32 bit product.
double uniform(uint64_t seed, uint64_t counter, uint32_t token) {
  uint32_t c[4] = {token, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = 0xD2511F53ull * c[0], product1 = 0xCD9E8D57ull * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(product1),
                              static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(product0)};
    std::copy(next, next + 4, c);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return ((c[0] >> 8) + 0.5) * 0x1p-24;
}

// Which tokens a row keeps, by sorting.
std::vector<bool> kept(const std::vector<float>& z, const Options& o) {
  const auto V = static_cast<int64_t>(z.size());
  std::vector<float> ordered(z);
  std::sort(ordered.begin(), ordered.end(), std::greater<>());
  double least = -INFINITY;
  if (o.top_k > 0 && o.top_k < V) least = ordered[o.top_k - 1];
  if (o.top_p < 1.0) {
    double total = 0.0, mass = 0.0;
    for (const float value : ordered) total += value >= least ? std::exp(double{value}) : 0.0;
    for (const float value : ordered) {
      mass += std::exp(double{value});
      if (mass < o.top_p * total) continue;
      least = value;
      break;
    }
  }
  if (o.min_p > 0.0) least = std::max(least, double{static_cast<float>(std::log(o.min_p))});
  std::vector<bool> keep(V);
  for (int64_t i = 0; i < V; ++i) keep[i] = z[i] >= least;
  return keep;
}

template <class T>
void check_tokens(int64_t B, int64_t V, const Options& o, int seeds) {
  std::mt19937 generator(static_cast<unsigned>(V));
  const GlobalBuffer<T> logits(B * V);
  fill_random(logits, 1.0, generator, 2.5);
  if (V > 40) logits[17] = simt::from_float<T>(-INFINITY);
  const GlobalBuffer<int64_t> rng(2 * B);
  fill_streams(rng, 0);
  std::vector<int64_t> want(B);
  for (int64_t b = 0; b < B; ++b) {
    std::vector<float> z(V);
    for (int64_t i = 0; i < V; ++i) z[i] = simt::to_float(logits[b * V + i]);
    const float top = *std::max_element(z.begin(), z.end());
    for (float& value : z) value = o.temperature > 0.0f ? (value - top) / o.temperature : value;
    const std::vector<bool> keep = o.temperature > 0.0f ? kept(z, o) : std::vector<bool>(V, true);
    double best = -INFINITY;
    for (int64_t i = 0; i < V; ++i) {
      if (!keep[i]) continue;
      double score = z[i];
      if (o.temperature > 0.0f) {
        score -= std::log(-std::log(uniform(rng[2 * b], rng[2 * b + 1], static_cast<uint32_t>(i))));
      }
      if (score > best) want[b] = i;
      best = std::max(best, score);
    }
  }
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    expect(sampled(logits, rng, B, V, o) == want, name_of(B, V, o) + " seed " + std::to_string(seed));
  }
}

template <class T>
void check_dtype(int seeds) {
  const Options options[] = {
      {1.0f},    {0.0f},          {0.7f, 5},          {1.0f, 0, 0.9}, {1.3f, 0, 1.0, 0.05}, {0.8f, 50, 0.95, 0.01},
      {2.0f, 1}, {1.0f, 0, 1e-6}, {5.0f, 1000, 0.999}};
  for (const Options& o : options) check_tokens<T>(3, 700, o, seeds);
  check_tokens<T>(2, 5003, {0.8f, 50, 0.95, 0.01}, seeds);
  for (const int64_t V : {1, 2, 31, 255, 256, 257, 2047, 2048, 2049}) check_tokens<T>(2, V, {1.0f, 20, 0.9}, seeds);
  check_tokens<T>(1, 40009, {0.9f, 200, 0.9, 0.001}, seeds);
}

// Persimmon's vocabulary, and one for which the blocks of a row have more than one round.
void check_vocabularies(int) {
  check_tokens<float>(1, 262144, {0.8f, 50, 0.95, 0.01}, 1);
  check_tokens<simt::bf16>(1, 262144, {1.0f}, 1);
  check_tokens<float>(1, 600000, {0.9f, 0, 0.9}, 1);
}

// A token of each row of logits that are all the same: every token is in the same bin, and none is kept without the
// others.
void check_equals(int seeds) {
  constexpr int64_t kRows = 2, kTokens = 5000;
  const GlobalBuffer<float> logits(kRows * kTokens);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = -3.0f;
  const GlobalBuffer<int64_t> rng(2 * kRows);
  fill_streams(rng, 0);
  const std::vector<int64_t> want = sampled(logits, rng, kRows, kTokens, {1.0f});
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    expect(sampled(logits, rng, kRows, kTokens, {1.0f, 7, 0.5, 0.1}) == want, "equal logits are kept together");
  }
}

// Equal logits at the thresholds, the first of equals, and rows without a token.
void check_rows(int) {
  const GlobalBuffer<float> logits(6 * 4);
  const float rows[6][4] = {{1, 3, 3, 2},
                            {NAN, 1, 2, 3},
                            {1, INFINITY, 0, 0},
                            {-INFINITY, -INFINITY, -INFINITY, -INFINITY},
                            {-INFINITY, -5, -INFINITY, -INFINITY},
                            {0, 0, 0, 0}};
  std::memcpy(logits.data(), rows, sizeof(rows));
  const GlobalBuffer<int64_t> rng(2 * 6);
  fill_streams(rng, 0);
  for (const Options& o : {Options{0.0f}, Options{1.0f, 1}, Options{1.0f, 0, 0.5}, Options{1.0f, 2, 0.3, 0.9}}) {
    const std::vector<int64_t> token = sampled(logits, rng, 6, 4, o);
    expect(token[0] == 1 || (o.temperature > 0.0f && token[0] == 2), "the highest logits, " + name_of(6, 4, o));
    for (const int row : {1, 2, 3}) expect(token[row] == -1, "row " + std::to_string(row) + " has no token");
    expect(token[4] == 1, "a single finite logit");
    expect(o.temperature > 0.0f || token[5] == 0, "the first of equals");
  }
}

// The probability of each token under the filters, in float64.
std::vector<double> distribution(const std::vector<float>& logits, const Options& o) {
  const auto V = static_cast<int64_t>(logits.size());
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<double> mass(V);
  for (int64_t i = 0; i < V; ++i) mass[i] = std::exp((logits[i] - top) / o.temperature);
  std::vector<int64_t> order(V);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return mass[a] > mass[b]; });
  int64_t count = o.top_k > 0 ? std::min(o.top_k, V) : V;
  double total = 0.0, sum = 0.0;
  for (int64_t i = 0; i < count; ++i) total += mass[order[i]];
  for (int64_t i = 0; i < count && o.top_p < 1.0; ++i) {
    sum += mass[order[i]];
    if (sum >= o.top_p * total) count = i + 1;
  }
  while (mass[order[count - 1]] < o.min_p) --count;  // the likeliest token has mass 1
  total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += mass[order[i]];
  std::vector<double> probability(V);
  for (int64_t i = 0; i < count; ++i) probability[order[i]] = mass[order[i]] / total;
  return probability;
}

// Chi-square of `draws` draws for each schedule. A cell is a token, or as many neighbours as have 5 expected draws.
void check_draws(int64_t V, const Options& o, int64_t draws, int seeds) {
  std::mt19937 generator(static_cast<unsigned>(V));
  std::normal_distribution<float> normal(0.0f, 1.5f);
  std::vector<float> row(V);
  for (float& logit : row) logit = normal(generator);
  const GlobalBuffer<float> logits(draws * V);
  for (int64_t i = 0; i < draws * V; ++i) logits[i] = row[i % V];
  std::vector<double> drawn(V);
  for (int seed = 0; seed < seeds; ++seed) {
    const GlobalBuffer<int64_t> rng(2 * draws);
    fill_streams(rng, seed);
    simt::set_seed(seed);
    for (const int64_t token : sampled(logits, rng, draws, V, o)) drawn[token] += 1.0;
  }
  const std::vector<double> probability = distribution(row, o);
  double chi_square = 0.0, got = 0.0, expected = 0.0;
  int cells = 0;
  for (int64_t i = 0; i < V; ++i) {
    expect(probability[i] > 0.0 || drawn[i] == 0.0, "a token was drawn that a filter drops, " + name_of(draws, V, o));
    got += drawn[i];
    expected += probability[i] * static_cast<double>(draws * seeds);
    if (expected < 5.0) continue;
    chi_square += (got - expected) * (got - expected) / expected;
    got = expected = 0.0;
    ++cells;
  }
  const double freedom = cells - 1, spread = 2.0 / (9.0 * freedom);
  const double limit = freedom * std::pow(1.0 - spread + 3.09 * std::sqrt(spread), 3.0);  // p 0.001 (Wilson, Hilferty)
  const std::string what = std::to_string(cells) + " cells, " + name_of(draws, V, o);
  expect(cells > 20, "too few draws for a test: " + what);
  expect(chi_square < limit, "chi-square " + std::to_string(chi_square) + ", " + what);
}

void check_distribution(int seeds) {
  check_draws(1000, {0.9f, 300, 0.9, 0.005}, 250, seeds);
  check_draws(1000, {1.2f, 0, 0.8}, 250, seeds);
  check_draws(2500, {0.7f}, 250, seeds);
}

void check_launcher(int) {
  SampleParams params{};
  params.V = 8;
  params.temperature = 1.0f;
  params.top_p = 1.0;
  const auto launch = [&] { return launch_sample(params, simt::Dtype::kFloat32, nullptr); };
  expect(launch() == cudaSuccess, "no rows: nothing to do");
  params.top_p = 0.0;
  expect(launch() == cudaErrorInvalidValue, "top_p out of range");
  params.top_p = 1.0;
  params.V = 0;
  expect(launch() == cudaErrorInvalidValue, "no tokens to choose from");
  expect(sample_blocks(262144) == 128 && sample_blocks(1 << 30) == 256, "2048 tokens a block, 256 blocks at most");
  expect(sample_levels(100, 1.0f, 100, 1.0) == 0 && sample_levels(100, 1.0f, 99, 0.5) == 6,
         "three levels a filter that filters");
  expect(sample_levels(100, 0.0f, 99, 0.5) == 0, "nothing is filtered for the likeliest token");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float32", check_dtype<float>},
                           {"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"vocabularies", check_vocabularies},
                           {"distribution", check_distribution},
                           {"equals", check_equals},
                           {"rows", check_rows},
                           {"launcher", check_launcher}});
}
