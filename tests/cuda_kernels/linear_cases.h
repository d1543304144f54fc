// The cases that the products over row-major weights share.
#pragma once

#include "cuda/linear.cuh"
#include "product_reference.h"

namespace kernel_test {

using LinearLauncher = cudaError_t (*)(const persimmon::cuda::LinearParams&, simt::Dtype, cudaStream_t);

template <class T>
void check_linear(LinearLauncher launch, const Weight& weight, const ProductShape& s, std::mt19937& generator,
                  int seeds) {
  const Product<T> product(s, generator);
  const simt::GlobalBuffer<T> first(s.M * s.N);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const simt::GlobalBuffer<T> y(s.M * s.N);
    const persimmon::cuda::LinearParams params{product.x.data(),
                                               weight.bytes.data(),
                                               weight.scale.size() > 0 ? weight.scale.data() : nullptr,
                                               s.bias ? product.bias.data() : nullptr,
                                               s.residual ? product.residual.data() : nullptr,
                                               y.data(),
                                               s.M,
                                               s.N,
                                               s.K,
                                               s.relu2};
    expect(launch(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    product.expect_result(y, [&](int64_t n, int64_t k) { return weight.values[n * s.K + k]; }, name_of(s, seed));
    if (seed == 0) std::memcpy(first.data(), y.data(), y.size() * sizeof(T));
    expect(same_bits(y, first), "the bits depend on the schedule: " + name_of(s, seed));
  }
  // A row alone gives the bits that it gives among others.
  const simt::GlobalBuffer<T> row(s.N);
  const persimmon::cuda::LinearParams alone{product.x.data(),
                                            weight.bytes.data(),
                                            weight.scale.size() > 0 ? weight.scale.data() : nullptr,
                                            s.bias ? product.bias.data() : nullptr,
                                            s.residual ? product.residual.data() : nullptr,
                                            row.data(),
                                            1,
                                            s.N,
                                            s.K,
                                            s.relu2};
  expect(launch(alone, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
  expect(std::memcmp(row.data(), first.data(), s.N * sizeof(T)) == 0,
         "the bits depend on the number of rows: " + name_of(s, 0));
}

// Every number of rows; N and K around the kernel's tiles. K comes in units of `unit` columns; `make(N, K, generator)`
// gives the weight.
template <class T, class MakeWeight>
void check_linear_shapes(LinearLauncher launch, int64_t unit, const MakeWeight& make, int seeds) {
  std::mt19937 generator(7);
  const auto check = [&](const ProductShape& s, int runs) {
    check_linear<T>(launch, *make(s.N, s.K, generator), s, generator, runs);
  };
  for (int64_t M = 1; M <= 16; ++M) check({M, 5, 3 * unit, M % 2 == 0, M % 3 == 0, M % 4 == 1}, 2);
  for (const int64_t N : {1, 31, 32, 33, 97}) check({1, N, unit}, seeds);
  for (const int64_t units : {1, 2, 31, 32, 33, 65, 129}) check({2, 3, units * unit, true, false, true}, 2);
  check({16, 35, 2048 + unit}, 1);  // several blocks of activations
  check({8, 33, 4096 + unit}, 1);
  check({1, 3, 16384 + unit, false, false}, 1);
}

// Launches that must be refused, or do nothing.
inline void check_linear_launcher(LinearLauncher launch, int64_t unit) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  const persimmon::cuda::LinearParams good{aligned, aligned, nullptr, nullptr, nullptr, aligned, 0, 4, unit, false};
  const auto error = [&](auto change) {
    persimmon::cuda::LinearParams params = good;
    change(params);
    return launch(params, simt::Dtype::kBFloat16, nullptr);
  };
  expect(error([](auto&) {}) == cudaSuccess, "no rows: nothing to do");
  expect(error([](auto& p) { p.M = 17; }) == cudaErrorInvalidValue, "more than 16 rows");
  expect(error([&](auto& p) { p.K = unit / 2; }) == cudaErrorInvalidValue, "a row that is not whole vectors");
  expect(error([](auto& p) { p.x = reinterpret_cast<void*>(uintptr_t{4100}); }) == cudaErrorInvalidValue,
         "an address that is not a multiple of 16");
  expect(launch(good, simt::Dtype::kFloat32, nullptr) == cudaErrorInvalidValue, "float32");
}

}  // namespace kernel_test
