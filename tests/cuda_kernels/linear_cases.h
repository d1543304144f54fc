// The cases that the products over row-major weights share.
#pragma once

#include "cuda/linear.cuh"
#include "product_reference.h"

namespace kernel_test {

using LinearLauncher = cudaError_t (*)(const persimmon::cuda::LinearParams&, simt::Dtype, cudaStream_t);

// The columns of y [M, N] with a non-zero, as the kernel lists them.
template <class T>
std::vector<uint16_t> nonzero_words(const simt::GlobalBuffer<T>& y, int64_t M, int64_t N) {
  std::vector<uint16_t> words(persimmon::cuda::nonzero_words(N), 0);
  for (int64_t i = 0; i < M * N; ++i) {
    const int64_t n = i % N;
    if (simt::to_float(y[i]) != 0.0f) words[n / 16] |= static_cast<uint16_t>(1u << n % 16);
  }
  return words;
}

template <class T>
persimmon::cuda::LinearParams linear_params(const Product<T>& product, const Weight& weight, const T* x, T* y) {
  const ProductShape& s = product.shape;
  return {x,
          s.norm ? product.norm_weight.data() : nullptr,
          s.norm ? product.norm_bias.data() : nullptr,
          weight.bytes.data(),
          weight.scale.size() > 0 ? weight.scale.data() : nullptr,
          s.bias ? product.bias.data() : nullptr,
          s.residual ? product.residual.data() : nullptr,
          y,
          {},
          s.M,
          s.N,
          s.K,
          Product<T>::kEps,
          s.relu2};
}

template <class T>
void check_linear(LinearLauncher launch, const Weight& weight, const ProductShape& s, std::mt19937& generator,
                  int seeds) {
  constexpr int64_t kArrivals = 300;  // more than a block's threads
  const Product<T> product(s, generator);
  const simt::GlobalBuffer<T> first(s.M * s.N);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const simt::GlobalBuffer<T> x(s.M * s.K), y(s.M * s.N);
    const simt::GlobalBuffer<uint16_t> words(persimmon::cuda::nonzero_words(s.N));
    const simt::GlobalBuffer<uint32_t> arrivals(kArrivals);
    // x is written by a kernel that may still run when this one begins.
    simt::set_predecessor([&] { std::memcpy(x.data(), product.x.data(), x.size() * sizeof(T)); });
    persimmon::cuda::LinearParams params = linear_params(product, weight, x.data(), y.data());
    const bool lists = seed % 2 == 0;
    if (lists) params.nonzeros = {words.data(), arrivals.data(), kArrivals};
    expect(launch(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    product.expect_result(y, [&](int64_t n, int64_t k) { return weight.values[n * s.K + k]; }, name_of(s, seed));
    if (seed == 0) std::memcpy(first.data(), y.data(), y.size() * sizeof(T));
    expect(same_bits(y, first), "the bits depend on the schedule: " + name_of(s, seed));
    const std::vector<uint16_t> listed = nonzero_words(y, s.M, s.N);
    for (size_t i = 0; i < words.size(); ++i) {
      const int want = lists ? listed[i] : 0xffff;
      expect(words[i] == want, "word " + std::to_string(i) + " of the non-zeros: " + name_of(s, seed));
    }
    for (size_t i = 0; i < arrivals.size(); ++i) expect(arrivals[i] == (lists ? 0 : ~0u), "arrivals are not cleared");
    words.check();
    arrivals.check();
  }
  // A row alone gives the bits that it gives among others.
  const simt::GlobalBuffer<T> row(s.N);
  for (int64_t m = 0; m < s.M; ++m) {
    persimmon::cuda::LinearParams alone = linear_params(product, weight, product.x.data() + m * s.K, row.data());
    if (alone.residual != nullptr) alone.residual = product.residual.data() + m * s.N;
    alone.M = 1;
    expect(launch(alone, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    row.check();
    expect(std::memcmp(row.data(), first.data() + m * s.N, s.N * sizeof(T)) == 0,
           "the bits of row " + std::to_string(m) + " depend on the number of rows: " + name_of(s, 0));
  }
}

// Every number of rows; N and K around the kernel's tiles. K comes in units of `unit` columns; `make(N, K, generator)`
// gives the weight.
template <class T, class MakeWeight>
void check_linear_shapes(LinearLauncher launch, int64_t unit, const MakeWeight& make, int seeds) {
  std::mt19937 generator(7);
  const auto check = [&](const ProductShape& s) {
    check_linear<T>(launch, *make(s.N, s.K, generator), s, generator, seeds);
  };
  for (int64_t M = 1; M <= 16; ++M) check({M, 5, 3 * unit, M % 2 == 0, M % 3 == 0, M % 4 == 1, M % 2 == 1});
  for (const int64_t N : {1, 31, 32, 33, 97}) check({1, N, unit});
  for (const int64_t N : {1, 31, 32, 33, 97}) check({3, N, 2 * unit, true, false, true, true});
  for (const int64_t units : {1, 2, 31, 32, 33, 65, 129}) check({2, 3, units * unit, true, false, true});
  for (const int64_t columns : {512, 2048, 4096}) {  // around the norm's rounds of 2048 columns
    for (const int64_t extra : {-unit, int64_t{0}, unit}) check({2, 3, columns + extra, true, true, false, true});
  }
  check({16, 35, 2048 + unit});  // several blocks of activations
  check({16, 35, 2048 + unit, true, false, true, true});
  check({8, 33, 4096 + unit});
  check({1, 3, 16384 + unit, false, false});
}

// Launches that must be refused, or do nothing.
inline void check_linear_launcher(LinearLauncher launch, int64_t unit) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  void* const unaligned = reinterpret_cast<void*>(uintptr_t{4100});
  persimmon::cuda::LinearParams good{};
  good.x = good.weight = aligned;
  good.y = aligned;
  good.N = 4;
  good.K = unit;
  const auto error = [&](auto change) {
    persimmon::cuda::LinearParams params = good;
    change(params);
    return launch(params, simt::Dtype::kBFloat16, nullptr);
  };
  expect(error([](auto&) {}) == cudaSuccess, "no rows: nothing to do");
  expect(error([](auto& p) { p.M = 17; }) == cudaErrorInvalidValue, "more than 16 rows");
  expect(error([&](auto& p) { p.K = unit / 2; }) == cudaErrorInvalidValue, "a row that is not whole vectors");
  expect(error([&](auto& p) { p.x = unaligned; }) == cudaErrorInvalidValue, "an address that is not a multiple of 16");
  expect(error([&](auto& p) { p.norm_weight = aligned; }) == cudaErrorInvalidValue, "a norm without a bias");
  expect(error([&](auto& p) { p.norm_weight = p.norm_bias = unaligned; }) == cudaErrorInvalidValue,
         "a norm at an address that is not a multiple of 16");
  expect(launch(good, simt::Dtype::kFloat32, nullptr) == cudaErrorInvalidValue, "float32");
}

}  // namespace kernel_test
