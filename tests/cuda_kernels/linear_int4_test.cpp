// linear_int4 under the emulator against a float64 reference.
// Cases: float16 bfloat16 launcher
#include "linear_cases.h"

namespace {

using persimmon::cuda::launch_linear_int4;

constexpr int64_t kUnit = 64;

template <class T>
void check_dtype(int seeds) {
  kernel_test::check_linear_shapes<T>(
      launch_linear_int4, kUnit,
      [](int64_t N, int64_t K, std::mt19937& generator) { return kernel_test::int4_weight(N, K, generator); }, seeds);
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"launcher", [](int) { kernel_test::check_linear_launcher(launch_linear_int4, kUnit); }}});
}
