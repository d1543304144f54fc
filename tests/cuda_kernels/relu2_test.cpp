// relu2 and its gradient under the emulator against a float64 reference.
// Cases: float32 float16 bfloat16 launcher
#include "cuda/relu2.cuh"

#include "kernel_test.h"

namespace {

using kernel_test::expect;
using kernel_test::fill_random;
using kernel_test::Format;
using kernel_test::WorstError;
using persimmon::cuda::launch_relu2;
using persimmon::cuda::Relu2Params;
using simt::GlobalBuffer;

struct Shape {
  int64_t rows;
  int64_t columns;
  bool bias = true;
  int misalign = 0;  // elements by which x misses a 16-byte boundary
};

template <class T>
void check_shape(const Shape& s, bool backward, int seeds) {
  std::mt19937 generator(static_cast<unsigned>(s.rows * 1009 + s.columns));
  const int64_t count = s.rows * s.columns;
  const GlobalBuffer<T> grad(count), x(count + s.misalign), bias(s.columns);
  fill_random(grad, 0.0, generator);
  fill_random(x, 0.0, generator);
  fill_random(bias, 0.0, generator);
  if (count > 2) x[2] = simt::from_float<T>(NAN);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> out(count);
    const Relu2Params params{
        backward ? grad.data() : nullptr, x.data(), s.bias ? bias.data() : nullptr, out.data(), s.rows, s.columns};
    expect(launch_relu2(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    WorstError worst;
    for (int64_t i = 0; i < count; ++i) {
      if (i == 2) {
        expect(std::isnan(simt::to_float(out[i])), "NaN stays NaN");
        continue;
      }
      const double u = std::max(0.0, simt::to_float(x[i]) + (s.bias ? double{simt::to_float(bias[i % s.columns])} : 0));
      const double want = backward ? simt::to_float(grad[i]) * 2.0 * u : u * u;
      // float16 has its smallest steps below 6e-5.
      worst.add(simt::to_float(out[i]), want, Format<T>::kRoundoff * std::abs(want) + 6e-7 * (1.0 + std::abs(want)));
    }
    worst.expect_below_one("rows " + std::to_string(s.rows) + " columns " + std::to_string(s.columns) + " bias " +
                           std::to_string(s.bias) + " backward " + std::to_string(backward) + " seed " +
                           std::to_string(seed));
    out.check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const bool backward : {false, true}) {
    for (const int64_t columns : {1, 7, 511, 512, 513, 4088, 4096, 4104}) check_shape<T>({3, columns}, backward, seeds);
    check_shape<T>({1, 9001, false}, backward, seeds);
    check_shape<T>({5, 264, true, 1}, backward, seeds);
    check_shape<T>({0, 8}, backward, seeds);
  }
  if (sizeof(T) == 4) check_shape<T>({65535 + 3, 4}, false, seeds);  // more rows than the grid has places
}

void check_launcher(int) {
  const Relu2Params negative{nullptr, nullptr, nullptr, nullptr, -1, 4};
  expect(launch_relu2(negative, simt::Dtype::kFloat32, nullptr) == cudaErrorInvalidValue, "negative rows are an error");
  const Relu2Params empty{nullptr, nullptr, nullptr, nullptr, 4, 0};
  expect(launch_relu2(empty, simt::Dtype::kFloat32, nullptr) == cudaSuccess, "no columns: nothing to do");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float32", check_dtype<float>},
                           {"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"launcher", check_launcher}});
}
