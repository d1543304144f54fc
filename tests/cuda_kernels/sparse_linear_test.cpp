// sparse_linear under the emulator against a float64 reference, alone and behind the product that makes its input.
// Cases: float16 bfloat16 behind_linear launcher
#include "linear_cases.h"
#include "sparse_cases.h"

namespace {

using kernel_test::expect;
using kernel_test::plain_weight;
using kernel_test::Product;

constexpr kernel_test::SparseFormat kFormat{persimmon::cuda::launch_sparse_linear, 16, 8};

template <class T>
void check_dtype(int seeds) {
  kernel_test::check_sparse_shapes<T>(
      kFormat, [](int64_t F, int64_t C, std::mt19937& generator) { return plain_weight<T>(F, C, generator); }, seeds);
}

// x + W2 relu2(W1 norm(x) + b1) + b2, as norm_mlp launches it: what the first kernel leaves is all that the second
// gets.
template <class T>
void check_mlp(int64_t M, int64_t C, int64_t F, int seed) {
  std::mt19937 generator(static_cast<unsigned>(M + F));
  const Product<T> up({M, F, C, true, false, true, true}, generator), down({M, C, F}, generator);
  const auto up_weight = plain_weight<T>(F, C, generator), down_weight = plain_weight<T>(F, C, generator);
  simt::set_seed(seed);
  const simt::GlobalBuffer<uint16_t> words(persimmon::cuda::nonzero_words(F));
  const int64_t arrival_count = persimmon::cuda::sparse_linear_arrivals(M, C, 16);
  const simt::GlobalBuffer<uint32_t> arrivals(arrival_count);
  const simt::GlobalBuffer<float> partials(persimmon::cuda::sparse_linear_splits(F, 16) * M * C);
  const simt::GlobalBuffer<T> y(M * C);
  const persimmon::cuda::NonzeroList nonzeros{words.data(), arrivals.data(), arrival_count};
  persimmon::cuda::LinearParams first = kernel_test::linear_params(up, *up_weight, up.x.data(), down.x.data());
  first.nonzeros = nonzeros;
  const persimmon::cuda::SparseLinearParams second{down.x.data(),
                                                   down_weight->bytes.data(),
                                                   nullptr,
                                                   down.bias.data(),
                                                   down.residual.data(),
                                                   y.data(),
                                                   partials.data(),
                                                   nonzeros,
                                                   M,
                                                   C,
                                                   F,
                                                   false,
                                                   false};
  constexpr simt::Dtype kDtype = kernel_test::Format<T>::kDtype;
  expect(persimmon::cuda::launch_linear(first, kDtype, nullptr) == cudaSuccess, "the first launch failed");
  expect(persimmon::cuda::launch_sparse_linear(second, kDtype, nullptr) == cudaSuccess, "the second launch failed");
  const std::string what = "seed " + std::to_string(seed);
  up.expect_result(down.x, [&](int64_t n, int64_t k) { return up_weight->values[n * C + k]; }, "hidden, " + what);
  down.expect_result(y, [&](int64_t n, int64_t k) { return down_weight->values[k * C + n]; }, "out, " + what);
}

void check_behind_linear(int seeds) {
  for (int seed = 0; seed < seeds; ++seed) {
    for (const int64_t M : {1, 3, 16}) check_mlp<simt::bf16>(M, 40, 101, seed);
    check_mlp<simt::fp16>(2, 264, 1025, seed);
  }
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"behind_linear", check_behind_linear},
                           {"launcher", [](int) { kernel_test::check_sparse_launcher(kFormat); }}});
}
