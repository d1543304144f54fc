// sparse_linear_int4 under the emulator against a float64 reference.
// Cases: float16 bfloat16 launcher
#include "sparse_cases.h"

namespace {

constexpr kernel_test::SparseFormat kFormat{persimmon::cuda::launch_sparse_linear_int4, 4, 64};

template <class T>
void check_dtype(int seeds) {
  kernel_test::check_sparse_shapes<T>(
      kFormat, [](int64_t F, int64_t C, std::mt19937& generator) { return kernel_test::int4_weight(F, C, generator); },
      seeds);
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"launcher", [](int) { kernel_test::check_sparse_launcher(kFormat); }}});
}
