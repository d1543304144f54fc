// layer_norm and add_layer_norm under the emulator against a float64 reference.
// Cases: float32 float16 bfloat16 plan
#include "cuda/layer_norm.cuh"

#include "kernel_test.h"

namespace {

using kernel_test::expect;
using kernel_test::fill_random;
using kernel_test::Format;
using kernel_test::WorstError;
using persimmon::cuda::launch_layer_norm;
using persimmon::cuda::LayerNormParams;
using persimmon::cuda::plan_layer_norm;
using simt::Dtype;
using simt::GlobalBuffer;

constexpr float kEps = 1e-5f;

struct Case {
  int64_t rows;
  int64_t columns;
  bool add = false;
  double mean = 0.5;
  int misalign = 0;  // elements by which x misses a 16-byte boundary
};

std::string name_of(const Case& c, int seed) {
  char text[160];
  std::snprintf(text, sizeof(text), "rows %lld columns %lld add %d mean %g misalign %d seed %d",
                static_cast<long long>(c.rows), static_cast<long long>(c.columns), c.add, c.mean, c.misalign, seed);
  return text;
}

// Allowed: one rounding to T, plus the float32 arithmetic before it, whose error grows with the mean that has to
// cancel.
template <class T>
WorstError worst_error(const T* x, const GlobalBuffer<T>& weight, const GlobalBuffer<T>& bias,
                       const GlobalBuffer<T>& out, const Case& c) {
  const double arithmetic = 2e-6 * (1.0 + std::abs(c.mean));
  WorstError worst;
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
      const double allowed = Format<T>::kRoundoff * std::abs(want) + arithmetic * (1.0 + std::abs(scaled));
      worst.add(simt::to_float(out[n * c.columns + i]), want, allowed);
    }
  }
  return worst;
}

template <class T>
void check_case(const Case& c, int seeds) {
  std::mt19937 generator(static_cast<unsigned>(c.rows * 100003 + c.columns));
  const int64_t count = c.rows * c.columns;
  // A buffer ends at a guard page: unused elements at its end move its start away from a 16-byte boundary.
  const GlobalBuffer<T> x(count + c.misalign), residual(c.add ? count : 0), weight(c.columns), bias(c.columns);
  fill_random(x, c.mean, generator);
  fill_random(residual, 0.0, generator);
  fill_random(weight, 1.0, generator);
  fill_random(bias, 0.0, generator);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> out(count), sum(c.add ? count : 0);
    const LayerNormParams params{x.data(),
                                 c.add ? residual.data() : nullptr,
                                 weight.data(),
                                 bias.data(),
                                 c.add ? sum.data() : nullptr,
                                 out.data(),
                                 c.rows,
                                 c.columns,
                                 kEps};
    expect(launch_layer_norm(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    for (int64_t i = 0; c.add && i < count; ++i) {
      const T want = simt::from_float<T>(simt::to_float(x[i]) + simt::to_float(residual[i]));
      expect(std::memcmp(&sum[i], &want, sizeof(T)) == 0, "the sum of " + name_of(c, seed));
    }
    worst_error(c.add ? sum.data() : x.data(), weight, bias, out, c).expect_below_one(name_of(c, seed));
    out.check();
    sum.check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const int64_t columns : {1, 7, 64, 255, 256, 257, 1000, 2048, 4096, 4097, 16384}) {
    for (const int64_t rows : {0, 1, 3, 17}) check_case<T>({rows, columns}, seeds);
  }
  for (const int64_t columns : {1, 255, 256, 4096}) check_case<T>({3, columns, true}, seeds);
  for (const int misalign : {1, 3, 7}) check_case<T>({3, 256, misalign == 3, 0.5, misalign}, seeds);
  check_case<T>({2, 16384 * 4 + 8}, seeds);                        // wider than registers hold
  check_case<T>({5, 4096, false, 100.0}, seeds);                   // a one-pass variance would cancel
  if (sizeof(T) == 4) check_case<T>({16384 * 2 + 3, 257}, seeds);  // more rows than the grid has places
}

LayerNormParams shape(int64_t rows, int64_t columns, uintptr_t x_address) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  return {reinterpret_cast<void*>(x_address), nullptr, aligned, aligned, nullptr, aligned, rows, columns, kEps};
}

void check_plan(int) {
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
  return kernel_test::run(argc, argv,
                          {{"float32", check_dtype<float>},
                           {"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"plan", check_plan}});
}
