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
// set, which spoils any result that they get into. `lists` gives the kernel the list of the columns of x that are not
// zero; the others are then overwritten too.
template <class T>
void check_sparse(const SparseFormat& format, const Weight& weight, const ProductShape& s, double zeros, bool all_rows,
                  std::mt19937& generator, int seeds, bool lists = false) {
  const Product<T> product(s, generator);
  std::bernoulli_distribution zero(zeros);
  for (size_t i = 0; i < product.x.size(); ++i) {
    if (zero(generator)) product.x[i] = simt::from_float<T>(0.0f);
  }
  const simt::GlobalBuffer<uint16_t> words(persimmon::cuda::nonzero_words(s.K));
  std::memset(words.data(), 0, words.size() * sizeof(uint16_t));
  const int64_t row_bytes = s.N * format.weight_bits / 8;
  const simt::GlobalBuffer<T> written(s.M * s.K);  // x as the kernel finds it
  std::memcpy(written.data(), product.x.data(), written.size() * sizeof(T));
  for (int64_t k = 0; k < s.K; ++k) {
    bool needed = false;
    for (int64_t m = 0; m < s.M; ++m) needed = needed || simt::to_float(product.x[m * s.K + k]) != 0.0f;
    if (needed) words[k / 16] = static_cast<uint16_t>(words[k / 16] | 1u << k % 16);
    if (needed || all_rows) continue;
    std::memset(weight.bytes.data() + k * row_bytes, 0xff, row_bytes);
    for (int64_t m = 0; m < s.M && lists; ++m) written[m * s.K + k] = simt::from_float<T>(NAN);
  }
  const simt::GlobalBuffer<T> first(s.M * s.N);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const simt::GlobalBuffer<T> x(s.M * s.K), y(s.M * s.N);
    const int64_t splits = persimmon::cuda::sparse_linear_splits(s.K, format.weight_bits);
    const int64_t arrival_count = persimmon::cuda::sparse_linear_arrivals(s.M, s.N, format.weight_bits);
    const simt::GlobalBuffer<float> partials(splits * s.M * s.N);
    const simt::GlobalBuffer<uint32_t> arrivals(arrival_count);
    simt::set_predecessor([&] {  // all that a kernel in front writes
      std::memcpy(x.data(), written.data(), x.size() * sizeof(T));
      std::memset(arrivals.data(), 0, arrival_count * sizeof(uint32_t));
    });
    const persimmon::cuda::SparseLinearParams params{x.data(),
                                                     weight.bytes.data(),
                                                     weight.scale.size() > 0 ? weight.scale.data() : nullptr,
                                                     s.bias ? product.bias.data() : nullptr,
                                                     s.residual ? product.residual.data() : nullptr,
                                                     y.data(),
                                                     partials.data(),
                                                     {lists ? words.data() : nullptr, arrivals.data(), arrival_count},
                                                     s.M,
                                                     s.N,
                                                     s.K,
                                                     s.relu2,
                                                     all_rows};
    expect(format.launch(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    const std::string what = name_of(s, seed) + " zeros " + std::to_string(zeros) + " listed " + std::to_string(lists);
    product.expect_result(y, [&](int64_t n, int64_t k) { return weight.values[k * s.N + n]; }, what);
    if (seed == 0) std::memcpy(first.data(), y.data(), y.size() * sizeof(T));
    expect(same_bits(y, first), "the bits depend on the schedule: " + what);
    for (int64_t i = 0; i < arrival_count; ++i) expect(arrivals[i] == splits, "not every block has arrived: " + what);
    partials.check();
    arrivals.check();
  }
}

// `make(F, C, generator)` gives the weight.
template <class T, class MakeWeight>
void check_sparse_shapes(const SparseFormat& format, const MakeWeight& make, int seeds) {
  std::mt19937 generator(7);
  const auto check = [&](const ProductShape& s, double zeros, bool all_rows = false, bool lists = false) {
    check_sparse<T>(format, *make(s.K, s.N, generator), s, zeros, all_rows, generator, seeds, lists);
  };
  const int64_t unit = format.unit, units_per_block = 1024 * format.weight_bits / 16;
  for (int64_t M = 1; M <= 16; ++M) check({M, unit, 37, M % 2 == 0, M % 3 == 0}, 0.8);
  for (const int64_t F : {1, 31, 32, 33, 255, 257}) check({1, 3 * unit, F}, 0.5);
  for (const double zeros : {0.0, 0.5, 0.99, 1.0}) check({2, unit, 301}, zeros);
  for (const int64_t extra : {-1, 0, 1}) check({1, 2 * unit, units_per_block + extra}, 0.9);
  for (const int64_t C : {31, 32, 33}) check({3, C * unit, 70}, 0.7);  // a tile of columns, and around it
  check({5, 40 * unit, 3 * units_per_block + 7}, 0.95);
  check({2, 5 * unit, 2 * units_per_block + 5, true, false, true}, 0.3, true);
  check({2, unit, 0}, 0.0);  // nothing to add: bias and residual
  for (const int64_t M : {1, 2, 3, 9, 16}) check({M, unit, 97}, 0.9, false, true);
  for (const int64_t F : {1, 15, 16, 17, 33, 257}) check({1, 2 * unit, F}, 0.5, false, true);
  for (const double zeros : {0.0, 1.0}) check({2, unit, 301}, zeros, false, true);
  check({4, 33 * unit, 2 * units_per_block + 1}, 0.9, false, true);
}

// Launches that must be refused, or do nothing.
inline void check_sparse_launcher(const SparseFormat& format) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  persimmon::cuda::SparseLinearParams good{};
  good.x = good.weight = aligned;
  good.y = aligned;
  good.partials = static_cast<float*>(aligned);
  good.nonzeros.arrivals = static_cast<uint32_t*>(aligned);
  good.C = format.unit;
  good.F = 4;
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
  expect(error([](auto& p) {
           p.M = 1;
           p.nonzeros.arrivals = nullptr;
         }) == cudaErrorInvalidValue,
         "no arrivals");
  expect(format.launch(good, simt::Dtype::kFloat32, nullptr) == cudaErrorInvalidValue, "float32");
}

}  // namespace kernel_test
