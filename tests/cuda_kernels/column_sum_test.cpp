// column_sum under the emulator against a float64 reference.
// Cases: float32 float16 bfloat16 launcher
#include "cuda/column_sum.cuh"

#include "kernel_test.h"

namespace {

using kernel_test::expect;
using kernel_test::fill_random;
using kernel_test::Format;
using kernel_test::WorstError;
using persimmon::cuda::ColumnSumParams;
using persimmon::cuda::launch_column_sum;
using simt::GlobalBuffer;

template <class T>
void check_shape(int64_t rows, int64_t columns, int outputs, int seeds) {
  std::mt19937 generator(static_cast<unsigned>(rows * 1009 + columns));
  const GlobalBuffer<float> partials(rows * outputs * columns);
  fill_random(partials, 0.1, generator);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> out(outputs * columns);
    ColumnSumParams params{partials.data(), {}, rows, columns, outputs};
    for (int i = 0; i < outputs; ++i) params.out[i] = out.data() + i * columns;
    expect(launch_column_sum(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    WorstError worst;
    for (int64_t i = 0; i < outputs * columns; ++i) {
      double want = 0.0, terms = 0.0;
      for (int64_t n = 0; n < rows; ++n) {
        want += partials[n * outputs * columns + i];
        terms += std::abs(partials[n * outputs * columns + i]);
      }
      worst.add(simt::to_float(out[i]), want, Format<T>::kRoundoff * std::abs(want) + 1e-6 * terms);
    }
    worst.expect_below_one("rows " + std::to_string(rows) + " columns " + std::to_string(columns) + " outputs " +
                           std::to_string(outputs) + " seed " + std::to_string(seed));
    out.check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const int64_t columns : {1, 31, 32, 33, 64, 127}) {
    for (const int64_t rows : {0, 1, 16, 17, 131}) check_shape<T>(rows, columns, 2, seeds);
  }
  for (const int outputs : {1, 3, 4}) check_shape<T>(7, 37, outputs, seeds);
}

void check_launcher(int) {
  ColumnSumParams params{nullptr, {}, 3, -1, 2};
  expect(launch_column_sum(params, simt::Dtype::kFloat32, nullptr) == cudaErrorInvalidValue, "negative columns");
  params.columns = 4;
  params.outputs = 5;
  expect(launch_column_sum(params, simt::Dtype::kFloat32, nullptr) == cudaErrorInvalidValue, "too many outputs");
  params.outputs = 0;
  expect(launch_column_sum(params, simt::Dtype::kFloat32, nullptr) == cudaSuccess, "no outputs: nothing to do");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float32", check_dtype<float>},
                           {"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"launcher", check_launcher}});
}
