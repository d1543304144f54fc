// layer_norm under the emulator against a float64 reference.
//   layer_norm_test float32|float16|bfloat16|plan SEEDS
#include "cuda/layer_norm.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "simt/global_buffer.h"

namespace {

using persimmon::cuda::launch_layer_norm;
using persimmon::cuda::LayerNormParams;
using persimmon::cuda::plan_layer_norm;
using simt::Dtype;
using simt::GlobalBuffer;

constexpr float kEps = 1e-5f;
int failures = 0;
double worst_of_all = 0.0;  // in units of the allowed error

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("MISMATCH: %s\n", what);
  ++failures;
}

template <class T>
struct Format;
template <>
struct Format<float> {
  static constexpr Dtype kDtype = Dtype::kFloat32;
  static constexpr double kRoundoff = 0x1p-24;
};
template <>
struct Format<simt::fp16> {
  static constexpr Dtype kDtype = Dtype::kFloat16;
  static constexpr double kRoundoff = 0x1p-11;
};
template <>
struct Format<simt::bf16> {
  static constexpr Dtype kDtype = Dtype::kBFloat16;
  static constexpr double kRoundoff = 0x1p-8;
};

struct Case {
  int64_t rows;
  int64_t columns;
  double mean = 0.5;
  int misalign = 0;  // elements by which x misses a 16-byte boundary
};

template <class T>
void fill_random(const GlobalBuffer<T>& buffer, double mean, std::mt19937& generator) {
  std::normal_distribution<float> distribution(static_cast<float>(mean), 1.0f);
  for (size_t i = 0; i < buffer.size(); ++i) buffer[i] = simt::from_float<T>(distribution(generator));
}

// The largest error in units of what is allowed: one rounding to T, plus the float32 arithmetic before it, whose error
// grows with the mean that has to cancel. NaN counts as infinite.
template <class T>
double worst_error(const GlobalBuffer<T>& x, const GlobalBuffer<T>& weight, const GlobalBuffer<T>& bias,
                   const GlobalBuffer<T>& out, const Case& c) {
  const double arithmetic = 2e-6 * (1.0 + std::abs(c.mean));
  double worst = 0.0;
  std::vector<double> row(c.columns);
  for (int64_t n = 0; n < c.rows; ++n) {
    double mean = 0.0, variance = 0.0;
    for (int64_t i = 0; i < c.columns; ++i) mean += row[i] = simt::to_float(x[n * c.columns + i]);
    mean /= static_cast<double>(c.columns);
    for (const double value : row) variance += (value - mean) * (value - mean);
    variance /= static_cast<double>(c.columns);
    for (int64_t i = 0; i < c.columns; ++i) {
      const double scaled = (row[i] - mean) / std::sqrt(variance + kEps) * simt::to_float(weight[i]);
      const double want = scaled + simt::to_float(bias[i]);
      const double got = simt::to_float(out[n * c.columns + i]);
      const double allowed = Format<T>::kRoundoff * std::abs(want) + arithmetic * (1.0 + std::abs(scaled));
      const double error = std::abs(got - want) / allowed;
      if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
    }
  }
  return worst;
}

template <class T>
void check_case(const Case& c, int seeds) {
  std::mt19937 generator(static_cast<unsigned>(c.rows * 100003 + c.columns));
  // A buffer ends at a guard page: unused elements at its end move its start away from a 16-byte boundary.
  const GlobalBuffer<T> x(c.rows * c.columns + c.misalign), weight(c.columns), bias(c.columns);
  fill_random(x, c.mean, generator);
  fill_random(weight, 1.0, generator);
  fill_random(bias, 0.0, generator);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> out(c.rows * c.columns);
    const LayerNormParams params{x.data(), weight.data(), bias.data(), out.data(), c.rows, c.columns, kEps};
    expect(launch_layer_norm(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    const double error = worst_error(x, weight, bias, out, c);
    worst_of_all = std::max(worst_of_all, error);
    if (!(error <= 1.0)) {
      std::printf("MISMATCH: rows %lld columns %lld mean %g misalign %d seed %d: %.3g times the allowed error\n",
                  static_cast<long long>(c.rows), static_cast<long long>(c.columns), c.mean, c.misalign, seed, error);
      ++failures;
    }
    out.check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const int64_t columns : {1, 7, 64, 255, 256, 257, 1000, 2048, 4096, 4097, 16384}) {
    for (const int64_t rows : {0, 1, 3, 17}) check_case<T>({rows, columns}, seeds);
  }
  for (const int misalign : {1, 3, 7}) check_case<T>({3, 256, 0.5, misalign}, seeds);
  check_case<T>({2, 16384 * 4 + 8}, 1);                        // wider than registers hold
  check_case<T>({5, 4096, 100.0}, seeds);                      // a one-pass variance would cancel
  if (sizeof(T) == 4) check_case<T>({16384 * 2 + 3, 257}, 1);  // more rows than the grid has places
}

LayerNormParams shape(int64_t rows, int64_t columns, uintptr_t x_address) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  return {reinterpret_cast<void*>(x_address), aligned, aligned, aligned, rows, columns, kEps};
}

void check_plan() {
  const auto hidden = plan_layer_norm(shape(10, 4096, 4096), 2);
  expect(hidden.vectorised && hidden.threads_per_row == 128 && hidden.rows_per_block == 1 && hidden.blocks == 10,
         "4096 16-bit columns: 128 threads a row");
  const auto widest = plan_layer_norm(shape(1, 16384, 4096), 4);
  expect(widest.vectorised && widest.threads_per_row == 1024, "16384 float32 columns: 1024 threads a row");
  expect(!plan_layer_norm(shape(1, 16388, 4096), 4).vectorised, "16388 float32 columns do not fit in registers");
  expect(!plan_layer_norm(shape(1, 4096, 4098), 2).vectorised, "an address that is not a multiple of 16");
  expect(!plan_layer_norm(shape(1, 4100, 4096), 2).vectorised, "a row that is not a multiple of 16 bytes");
  const auto narrow = plan_layer_norm(shape(5, 64, 4096), 2);
  expect(narrow.threads_per_row == 32 && narrow.rows_per_block == 4 && narrow.blocks == 2, "64 columns: a warp a row");
  expect(plan_layer_norm(shape(int64_t{1} << 40, 4096, 4096), 2).blocks == 16384, "the grid is bounded");
  const LayerNormParams negative = shape(-1, 64, 4096);
  expect(launch_layer_norm(negative, Dtype::kFloat32, nullptr) == cudaErrorInvalidValue, "negative rows are an error");
  const LayerNormParams empty = shape(7, 0, 4096);
  expect(launch_layer_norm(empty, Dtype::kFloat32, nullptr) == cudaSuccess, "no columns: nothing to do");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 3 ? argv[1] : "";
  const int seeds = argc == 3 ? std::atoi(argv[2]) : 0;
  if (seeds < 1) {
    std::fprintf(stderr, "usage: layer_norm_test float32|float16|bfloat16|plan SEEDS\n");
    return 2;
  }
  if (what == "float32") {
    check_dtype<float>(seeds);
  } else if (what == "float16") {
    check_dtype<simt::fp16>(seeds);
  } else if (what == "bfloat16") {
    check_dtype<simt::bf16>(seeds);
  } else if (what == "plan") {
    check_plan();
  } else {
    std::fprintf(stderr, "layer_norm_test: unknown test %s\n", what.c_str());
    return 2;
  }
  std::printf("%s: %d failures, largest error %.2f of the allowed\n", what.c_str(), failures, worst_of_all);
  return failures == 0 ? 0 : 1;
}
