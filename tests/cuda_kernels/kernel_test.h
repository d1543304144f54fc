// What the kernels' tests share: expectations, element formats, random data, and a main that runs one named case. The
// same tests run on a GPU when nvcc compiles them: see scripts/test_kernels_on_gpu.sh.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <random>
#include <string>

#include "simt/simt.h"
#if defined(__CUDACC__)
#include "managed_buffer.h"
#else
#include "simt/global_buffer.h"
#endif

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

// The largest error in units of what is allowed; NaN, of either side, counts as infinite.
class WorstError {
 public:
  void add(double got, double want, double allowed) {
    if (got == want) return;  // equal infinities too
    const double error = std::abs(got - want) / allowed;
    if (!(error <= worst_)) worst_ = std::isnan(error) ? INFINITY : error;
  }
  void expect_below_one(const std::string& what) const { expect_error_below_one(worst_, what); }

 private:
  double worst_ = 0.0;
};

template <class T>
void fill_random(const simt::GlobalBuffer<T>& buffer, double mean, std::mt19937& generator, double deviation = 1.0) {
  std::normal_distribution<float> distribution(static_cast<float>(mean), static_cast<float>(deviation));
  for (size_t i = 0; i < buffer.size(); ++i) buffer[i] = simt::from_float<T>(distribution(generator));
}

// Whether two buffers hold the same bits.
template <class T>
bool same_bits(const simt::GlobalBuffer<T>& a, const simt::GlobalBuffer<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
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
