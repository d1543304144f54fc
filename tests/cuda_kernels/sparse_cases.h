// The cases that the products over hidden-major weights share.
#pragma once

#include "cuda/sparse_linear.cuh"
#include "product_reference.h"

namespace kernel_test {

using SparseLauncher = cudaError_t (*)(const persimmon::cuda::SparseLinearParams&, simt::Dtype, cudaStream_t);

struct SparseFormat {
  SparseLauncher launch;
  int weight_bits;
  int64_t unit;  // columns come in multiples of it
};

// x gets `zeros` of its elements set to zero; the rows of W^T that no row of x then needs are overwritten with all bits
// set, which spoils any result that they get into.
template <class T>
void check_sparse(const SparseFormat& format, const Weight& weight, const ProductShape& s, double zeros, bool all_rows,
                  std::mt19937& generator, int seeds) {
  const Product<T> product(s, generator);
  std::bernoulli_distribution zero(zeros);
  for (size_t i = 0; i < product.x.size(); ++i) {
    if (zero(generator)) product.x[i] = simt::from_float<T>(0.0f);
  }
  const int64_t row_bytes = s.N * format.weight_bits / 8;
  for (int64_t k = 0; k < s.K && !all_rows; ++k) {
    bool needed = false;
    for (int64_t m = 0; m < s.M; ++m) needed = needed || simt::to_float(product.x[m * s.K + k]) != 0.0f;
    if (!needed) std::memset(weight.bytes.data() + k * row_bytes, 0xff, row_bytes);
  }
  const simt::GlobalBuffer<T> first(s.M * s.N);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const simt::GlobalBuffer<T> y(s.M * s.N);
    const int64_t splits = persimmon::cuda::sparse_linear_splits(s.K, format.weight_bits);
    const simt::GlobalBuffer<float> partials(splits * s.M * s.N);
    const persimmon::cuda::SparseLinearParams params{product.x.data(),
                                                     weight.bytes.data(),
                                                     weight.scale.size() > 0 ? weight.scale.data() : nullptr,
                                                     s.bias ? product.bias.data() : nullptr,
                                                     s.residual ? product.residual.data() : nullptr,
                                                     y.data(),
                                                     partials.data(),
                                                     s.M,
                                                     s.N,
                                                     s.K,
                                                     s.relu2,
                                                     all_rows};
    expect(format.launch(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    const std::string what = name_of(s, seed) + " zeros " + std::to_string(zeros);
    product.expect_result(y, [&](int64_t n, int64_t k) { return weight.values[k * s.N + n]; }, what);
    if (seed == 0) std::memcpy(first.data(), y.data(), y.size() * sizeof(T));
    expect(same_bits(y, first), "the bits depend on the schedule: " + what);
    partials.check();
  }
}

// `make(F, C, generator)` gives the weight.
template <class T, class MakeWeight>
void check_sparse_shapes(const SparseFormat& format, const MakeWeight& make, int seeds) {
  std::mt19937 generator(7);
  const auto check = [&](const ProductShape& s, double zeros, int runs, bool all_rows = false) {
    check_sparse<T>(format, *make(s.K, s.N, generator), s, zeros, all_rows, generator, runs);
  };
  const int64_t unit = format.unit, units_per_block = 1024 * format.weight_bits / 16;
  for (int64_t M = 1; M <= 16; ++M) check({M, unit, 37, M % 2 == 0, M % 3 == 0}, 0.8, 2);
  for (const int64_t F : {1, 31, 32, 33, 255, 257}) check({1, 3 * unit, F}, 0.5, seeds);
  for (const double zeros : {0.0, 0.5, 0.99, 1.0}) check({2, unit, 301}, zeros, seeds);
  for (const int64_t extra : {-1, 0, 1}) check({1, 2 * unit, units_per_block + extra}, 0.9, 2);
  for (const int64_t C : {31, 32, 33}) check({3, C * unit, 70}, 0.7, 2);  // a tile of columns, and around it
  check({5, 40 * unit, 3 * units_per_block + 7}, 0.95, 1);
  check({2, 5 * unit, 2 * units_per_block + 5, true, false, true}, 0.3, 2, true);
  check({2, unit, 0}, 0.0, 1);  // nothing to add: bias and residual
}

// Launches that must be refused, or do nothing.
inline void check_sparse_launcher(const SparseFormat& format) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  const persimmon::cuda::SparseLinearParams good{
      aligned, aligned,     nullptr, nullptr, nullptr, aligned, static_cast<float*>(aligned),
      0,       format.unit, 4,       false,   false};
  const auto error = [&](auto change) {
    persimmon::cuda::SparseLinearParams params = good;
    change(params);
    return format.launch(params, simt::Dtype::kBFloat16, nullptr);
  };
  expect(error([](auto&) {}) == cudaSuccess, "no rows: nothing to do");
  expect(error([](auto& p) { p.F = -1; }) == cudaErrorInvalidValue, "negative sizes");
  expect(error([](auto& p) { p.C += 4; }) == cudaErrorInvalidValue, "a row that is not whole vectors");
  expect(error([](auto& p) { p.weight = reinterpret_cast<void*>(uintptr_t{4100}); }) == cudaErrorInvalidValue,
         "an address that is not a multiple of 16");
  expect(format.launch(good, simt::Dtype::kFloat32, nullptr) == cudaErrorInvalidValue, "float32");
}

}  // namespace kernel_test
