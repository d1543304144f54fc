// layer_norm_backward under the emulator against a float64 reference.
// Cases: float32 float16 bfloat16 plan
#include "cuda/layer_norm_backward.cuh"

#include "kernel_test.h"

namespace {

using kernel_test::expect;
using kernel_test::fill_random;
using kernel_test::Format;
using kernel_test::same_bits;
using kernel_test::WorstError;
using persimmon::cuda::launch_layer_norm_backward;
using persimmon::cuda::LayerNormBackwardParams;
using persimmon::cuda::plan_layer_norm_backward;
using simt::GlobalBuffer;

constexpr float kEps = 1e-5f;

struct Case {
  int64_t rows;
  int64_t columns;
  int misalign = 0;  // elements by which x misses a 16-byte boundary
};

std::string name_of(const char* result, const Case& c, int seed) {
  char text[120];
  std::snprintf(text, sizeof(text), "%s, rows %lld columns %lld misalign %d seed %d", result,
                static_cast<long long>(c.rows), static_cast<long long>(c.columns), c.misalign, seed);
  return text;
}

struct Gradients {
  std::vector<double> dx, dweight, dbias;
  std::vector<double> dweight_terms, dbias_terms;  // sums of absolute values: what float32 sums are accurate to
};

template <class T>
Gradients reference(const GlobalBuffer<T>& grad, const GlobalBuffer<T>& x, const GlobalBuffer<T>& weight,
                    const Case& c) {
  const int64_t C = c.columns;
  Gradients g{std::vector<double>(c.rows * C), std::vector<double>(C), std::vector<double>(C), std::vector<double>(C),
              std::vector<double>(C)};
  for (int64_t n = 0; n < c.rows; ++n) {
    double mean = 0.0, variance = 0.0, mean_u = 0.0, mean_uz = 0.0;
    for (int64_t i = 0; i < C; ++i) mean += simt::to_float(x[n * C + i]) / static_cast<double>(C);
    for (int64_t i = 0; i < C; ++i)
      variance += std::pow(simt::to_float(x[n * C + i]) - mean, 2) / static_cast<double>(C);
    const double scale = 1.0 / std::sqrt(variance + kEps);
    const auto z = [&](int64_t i) { return (simt::to_float(x[n * C + i]) - mean) * scale; };
    const auto dy = [&](int64_t i) { return double{simt::to_float(grad[n * C + i])}; };
    for (int64_t i = 0; i < C; ++i) {
      mean_u += dy(i) * simt::to_float(weight[i]) / static_cast<double>(C);
      mean_uz += dy(i) * simt::to_float(weight[i]) * z(i) / static_cast<double>(C);
    }
    for (int64_t i = 0; i < C; ++i) {
      g.dx[n * C + i] = (dy(i) * simt::to_float(weight[i]) - mean_u - z(i) * mean_uz) * scale;
      g.dweight[i] += dy(i) * z(i);
      g.dbias[i] += dy(i);
      g.dweight_terms[i] += std::abs(dy(i) * z(i));
      g.dbias_terms[i] += std::abs(dy(i));
    }
  }
  return g;
}

template <class T>
void check_case(const Case& c, int seeds) {
  std::mt19937 generator(static_cast<unsigned>(c.rows * 100003 + c.columns));
  const int64_t count = c.rows * c.columns;
  const GlobalBuffer<T> grad(count), x(count + c.misalign), weight(c.columns);
  fill_random(grad, 0.0, generator);
  fill_random(x, 0.5, generator);
  fill_random(weight, 1.0, generator);
  const Gradients want = reference(grad, x, weight, c);
  const GlobalBuffer<T> first_dweight(c.columns);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> dx(count), dweight(c.columns), dbias(c.columns);
    LayerNormBackwardParams params{grad.data(),    x.data(),     weight.data(), dx.data(), nullptr,
                                   dweight.data(), dbias.data(), c.rows,        c.columns, kEps};
    const int64_t teams = plan_layer_norm_backward(params, sizeof(T)).teams();
    const GlobalBuffer<float> partials((teams * 2 * c.columns + 3) / 4 * 4);
    params.partials = partials.data();
    expect(launch_layer_norm_backward(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");

    constexpr double kArithmetic = 4e-6;
    WorstError dx_error, dweight_error, dbias_error;
    for (int64_t i = 0; i < count; ++i) {
      const double allowed = Format<T>::kRoundoff * std::abs(want.dx[i]) + kArithmetic * (4.0 + std::abs(want.dx[i]));
      // A row of few columns has a small variance at times, and then a large scale.
      dx_error.add(simt::to_float(dx[i]), want.dx[i], allowed * (c.columns < 8 ? 1e3 : 1.0));
    }
    for (int64_t i = 0; i < c.columns; ++i) {
      dweight_error.add(simt::to_float(dweight[i]), want.dweight[i],
                        Format<T>::kRoundoff * std::abs(want.dweight[i]) + kArithmetic * (1.0 + want.dweight_terms[i]));
      dbias_error.add(simt::to_float(dbias[i]), want.dbias[i],
                      Format<T>::kRoundoff * std::abs(want.dbias[i]) + kArithmetic * want.dbias_terms[i]);
    }
    dx_error.expect_below_one(name_of("dx", c, seed));
    dweight_error.expect_below_one(name_of("dweight", c, seed));
    dbias_error.expect_below_one(name_of("dbias", c, seed));
    if (seed == 0) std::memcpy(first_dweight.data(), dweight.data(), c.columns * sizeof(T));
    expect(same_bits(dweight, first_dweight), name_of("the bits of dweight depend on the schedule", c, seed));
    for (const auto* buffer : {&dx, &dweight, &dbias}) buffer->check();
    partials.check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const int64_t columns : {1, 7, 64, 256, 257, 1024, 4096}) {
    for (const int64_t rows : {0, 1, 5, 67}) check_case<T>({rows, columns}, seeds);
  }
  check_case<T>({3, 256, 1}, seeds);
  check_case<T>({5, 8200}, seeds);    // wider than registers hold
  check_case<T>({5, 8192}, seeds);    // the widest for 16-bit elements
  check_case<T>({1301, 512}, seeds);  // more rows than teams that take four each
  check_case<T>({1100, 9}, seeds);    // the same, element by element
}

LayerNormBackwardParams shape(int64_t rows, int64_t columns) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  return {aligned, aligned, aligned, aligned, static_cast<float*>(aligned), aligned, aligned, rows, columns, kEps};
}

void check_plan(int) {
  const auto hidden = plan_layer_norm_backward(shape(4096, 4096), 2);
  expect(hidden.vectorised && hidden.threads_per_row == 256 && hidden.teams_per_block == 1 && hidden.blocks == 264,
         "4096 16-bit columns: 256 threads a team, two teams a multiprocessor");
  const auto narrow = plan_layer_norm_backward(shape(64, 64), 2);
  expect(narrow.threads_per_row == 32 && narrow.teams_per_block == 4 && narrow.blocks == 4,
         "64 columns: a warp a team");
  expect(!plan_layer_norm_backward(shape(1, 4100), 4).vectorised, "4100 float32 columns do not fit in registers");
  expect(launch_layer_norm_backward(shape(-1, 64), simt::Dtype::kFloat32, nullptr) == cudaErrorInvalidValue,
         "negative rows are an error");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float32", check_dtype<float>},
                           {"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"plan", check_plan}});
}
