// split_sum under the emulator against a float64 reference.
// Cases: float32 float16 bfloat16 launcher
#include "cuda/split_sum.cuh"

#include "kernel_test.h"

namespace {

using kernel_test::expect;
using kernel_test::fill_random;
using kernel_test::Format;
using kernel_test::WorstError;
using persimmon::cuda::launch_split_sum;
using persimmon::cuda::SplitSumParams;
using simt::GlobalBuffer;

struct Shape {
  int64_t splits, M, N;
  bool scale = true, bias = true, relu2 = false, residual = true;
};

template <class T>
void check_shape(const Shape& s, int seeds) {
  std::mt19937 generator(static_cast<unsigned>(s.splits * 1009 + s.N));
  const int64_t outputs = s.M * s.N;
  const GlobalBuffer<float> partials(s.splits * outputs), scale(s.N);
  const GlobalBuffer<T> bias(s.N), residual(outputs);
  fill_random(partials, 0.1, generator);
  fill_random(scale, 0.5, generator);
  fill_random(bias, 0.0, generator);
  fill_random(residual, 0.0, generator);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> y(outputs);
    const SplitSumParams params{partials.data(),
                                s.scale ? scale.data() : nullptr,
                                s.bias ? bias.data() : nullptr,
                                s.residual ? residual.data() : nullptr,
                                y.data(),
                                s.splits,
                                s.M,
                                s.N,
                                s.relu2};
    expect(launch_split_sum(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    WorstError worst;
    for (int64_t i = 0; i < outputs; ++i) {
      const int64_t n = i % s.N;
      double want = 0.0;
      for (int64_t split = 0; split < s.splits; ++split) want += partials[split * outputs + i];
      if (s.scale) want *= scale[n];
      if (s.bias) want += simt::to_float(bias[n]);
      if (s.relu2) want = want > 0.0 ? want * want : 0.0;
      if (s.residual) want += simt::to_float(residual[i]);
      worst.add(simt::to_float(y[i]), want,
                Format<T>::kRoundoff * std::abs(want) + 4e-6 * (static_cast<double>(s.splits) + std::abs(want)));
    }
    worst.expect_below_one("splits " + std::to_string(s.splits) + " M " + std::to_string(s.M) + " N " +
                           std::to_string(s.N) + " seed " + std::to_string(seed));
    y.check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const int64_t splits : {0, 1, 7, 8, 9, 64}) check_shape<T>({splits, 3, 37}, seeds);
  for (const int64_t N : {1, 31, 32, 33}) check_shape<T>({5, 2, N, false, true, true, false}, seeds);
  check_shape<T>({4, 1, 64, true, false, false, false}, seeds);
}

void check_launcher(int) {
  SplitSumParams params{nullptr, nullptr, nullptr, nullptr, nullptr, 1, -1, 4, false};
  expect(launch_split_sum(params, simt::Dtype::kFloat32, nullptr) == cudaErrorInvalidValue, "negative sizes");
  params.M = 0;
  expect(launch_split_sum(params, simt::Dtype::kFloat32, nullptr) == cudaSuccess, "no rows: nothing to do");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float32", check_dtype<float>},
                           {"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"launcher", check_launcher}});
}
