// The tile kernels of linear_cross_entropy under the emulator against a float64 reference.
// Cases: float32 float16 bfloat16 infinities launcher
#include "cuda/cross_entropy.cuh"

#include <algorithm>

#include "kernel_test.h"

namespace {

using kernel_test::expect;
using kernel_test::fill_random;
using kernel_test::Format;
using kernel_test::WorstError;
using persimmon::cuda::launch_cross_entropy;
using persimmon::cuda::launch_cross_entropy_backward;
using simt::GlobalBuffer;

constexpr int64_t kIgnored = -100;

std::string name_of(const char* result, int64_t rows, int64_t columns, int seed) {
  return std::string(result) + ", rows " + std::to_string(rows) + " columns " + std::to_string(columns) + " seed " +
         std::to_string(seed);
}

// A vocabulary of three tiles of `columns`, and labels in all of them, ignored, and just past the last one.
template <class T>
void check_shape(int64_t rows, int64_t columns, int seeds) {
  constexpr int64_t kTiles = 3;
  std::mt19937 generator(static_cast<unsigned>(rows * 1009 + columns));
  const GlobalBuffer<T> logits(kTiles * rows * columns);  // [tiles, rows, columns]
  fill_random(logits, 0.0, generator, 3.0);
  const GlobalBuffer<int64_t> labels(rows);
  const GlobalBuffer<float> dloss(rows);
  fill_random(dloss, 0.0, generator);
  const int64_t V = kTiles * columns;
  for (int64_t n = 0; n < rows; ++n) labels[n] = n % 5 == 3 ? kIgnored : n % 7 == 6 ? V : (n * 7919 + 1) % V;
  std::vector<double> lse(rows, 0.0);
  const auto logit = [&](int64_t n, int64_t column) {
    return double{simt::to_float(logits[(column / columns * rows + n) * columns + column % columns])};
  };
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t column = 0; column < V; ++column) lse[n] += std::exp(logit(n, column));
    lse[n] = std::log(lse[n]);
  }
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<float> max(rows), sum(rows), target(rows), rounded_lse(rows);
    std::fill_n(max.data(), rows, -INFINITY);
    std::fill_n(sum.data(), rows, 0.0f);
    WorstError forward, backward;
    for (int64_t tile = 0; tile < kTiles; ++tile) {
      expect(launch_cross_entropy({&logits[tile * rows * columns], labels.data(), max.data(), sum.data(), target.data(),
                                   rows, tile * columns, columns},
                                  Format<T>::kDtype, nullptr) == cudaSuccess,
             "the launch failed");
    }
    for (int64_t n = 0; n < rows; ++n) {
      forward.add(max[n] + std::log(double{sum[n]}), lse[n], 4e-6 * (1.0 + std::abs(lse[n])));
      if (labels[n] == V) expect(std::isnan(target[n]), name_of("a label that no tile has", rows, columns, seed));
      if (labels[n] >= 0 && labels[n] < V) forward.add(target[n], logit(n, labels[n]), 0.0);
      rounded_lse[n] = static_cast<float>(lse[n]);
    }
    for (int64_t tile = 0; tile < kTiles; ++tile) {
      const GlobalBuffer<T> gradient(rows * columns);
      std::memcpy(gradient.data(), &logits[tile * rows * columns], rows * columns * sizeof(T));
      expect(launch_cross_entropy_backward({gradient.data(), labels.data(), dloss.data(), rounded_lse.data(), rows,
                                            tile * columns, columns, kIgnored},
                                           Format<T>::kDtype, nullptr) == cudaSuccess,
             "the launch failed");
      for (int64_t i = 0; i < rows * columns; ++i) {
        const int64_t n = i / columns, column = tile * columns + i % columns;
        const double softmax = std::exp(logit(n, column) - rounded_lse[n]) - (column == labels[n] ? 1.0 : 0.0);
        const double want = labels[n] == kIgnored ? 0.0 : softmax * dloss[n];
        // float16 has its smallest steps below 6e-5.
        backward.add(simt::to_float(gradient[i]), want, Format<T>::kRoundoff * std::abs(want) + 1e-6);
      }
      gradient.check();
    }
    forward.expect_below_one(name_of("forward", rows, columns, seed));
    backward.expect_below_one(name_of("backward", rows, columns, seed));
    for (const auto* buffer : {&max, &sum, &target}) buffer->check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const int64_t columns : {1, 31, 255, 256, 257, 1000}) check_shape<T>(7, columns, seeds);
  for (const int64_t rows : {0, 1, 19}) check_shape<T>(rows, 64, seeds);
}

// Rows whose maximum is infinite, and a first tile of nothing but -inf.
void check_infinities(int) {
  const GlobalBuffer<float> logits(3 * 2), max(3), sum(3), target(3);
  const float rows[3][2] = {{-INFINITY, -INFINITY}, {-INFINITY, 2.0f}, {INFINITY, 1.0f}};
  const GlobalBuffer<int64_t> labels(3);
  std::memcpy(logits.data(), rows, sizeof(rows));
  for (int n = 0; n < 3; ++n) {
    max[n] = -INFINITY;
    sum[n] = 0.0f;
    labels[n] = 5;  // in no tile
  }
  const persimmon::cuda::CrossEntropyParams params{
      logits.data(), labels.data(), max.data(), sum.data(), target.data(), 3, 0, 2};
  expect(launch_cross_entropy(params, simt::Dtype::kFloat32, nullptr) == cudaSuccess, "the launch failed");
  expect(max[0] == -INFINITY && sum[0] == 0.0f, "nothing but -inf adds nothing");
  expect(max[1] == 2.0f && sum[1] == 1.0f, "-inf adds nothing");
  expect(sum[2] == INFINITY, "an infinite logit");
  for (int n = 0; n < 3; ++n) expect(std::isnan(target[n]), "no label in this tile");
}

void check_launcher(int) {
  expect(launch_cross_entropy({nullptr, nullptr, nullptr, nullptr, nullptr, -1, 0, 4}, simt::Dtype::kFloat32,
                              nullptr) == cudaErrorInvalidValue,
         "negative rows are an error");
  expect(launch_cross_entropy_backward({nullptr, nullptr, nullptr, nullptr, 4, 0, 0, kIgnored}, simt::Dtype::kFloat32,
                                       nullptr) == cudaSuccess,
         "no columns: nothing to do");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float32", check_dtype<float>},
                           {"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"infinities", check_infinities},
                           {"launcher", check_launcher}});
}
