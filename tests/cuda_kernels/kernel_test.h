// What the kernels' tests share: expectations, element formats, random data, and a main that runs one named case.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <random>
#include <string>

#include "simt/global_buffer.h"
#include "simt/simt.h"

namespace kernel_test {

inline int failures = 0;
inline double worst_error = 0.0;  // in units of the allowed error

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("MISMATCH: %s\n", what.c_str());
  ++failures;
}

// `error` is in units of what is allowed; NaN is a failure.
inline void expect_error_below_one(double error, const std::string& what) {
  if (!(error <= worst_error)) worst_error = std::isnan(error) ? INFINITY : error;
  expect(error <= 1.0, what + ": " + std::to_string(error) + " times the allowed error");
}

template <class T>
struct Format;
template <>
struct Format<float> {
  static constexpr simt::Dtype kDtype = simt::Dtype::kFloat32;
  static constexpr double kRoundoff = 0x1p-24;  // largest relative error of a rounding
};
template <>
struct Format<simt::fp16> {
  static constexpr simt::Dtype kDtype = simt::Dtype::kFloat16;
  static constexpr double kRoundoff = 0x1p-11;
};
template <>
struct Format<simt::bf16> {
  static constexpr simt::Dtype kDtype = simt::Dtype::kBFloat16;
  static constexpr double kRoundoff = 0x1p-8;
};

template <class T>
void fill_random(const simt::GlobalBuffer<T>& buffer, double mean, std::mt19937& generator) {
  std::normal_distribution<float> distribution(static_cast<float>(mean), 1.0f);
  for (size_t i = 0; i < buffer.size(); ++i) buffer[i] = simt::from_float<T>(distribution(generator));
}

struct Case {
  const char* name;
  std::function<void(int seeds)> run;
};

// main of a test: PROGRAM CASE SEEDS runs the case under the schedules 0 to SEEDS - 1.
inline int run(int argc, char** argv, std::initializer_list<Case> cases) {
  const int seeds = argc == 3 ? std::atoi(argv[2]) : 0;
  for (const Case& test : cases) {
    if (seeds < 1 || std::string(argv[1]) != test.name) continue;
    test.run(seeds);
    std::printf("%s: %d failures, largest error %.2f of the allowed\n", test.name, failures, worst_error);
    return failures == 0 ? 0 : 1;
  }
  std::fprintf(stderr, "usage: %s CASE SEEDS, with SEEDS at least 1 and CASE one of:", argv[0]);
  for (const Case& test : cases) std::fprintf(stderr, " %s", test.name);
  std::fputc('\n', stderr);
  return 2;
}

}  // namespace kernel_test
