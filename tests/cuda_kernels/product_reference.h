// Weights in the formats of the products, with the float64 matrix that they stand for, and the float64 product.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kernel_test.h"

namespace kernel_test {

// A weight of `rows` rows of `columns` columns as it lies in memory.
struct Weight {
  Weight(int64_t rows, int64_t columns, int64_t byte_count, int64_t scales)
      : values(rows * columns), bytes(byte_count), scale(scales) {}

  std::vector<double> values;  // [rows, columns]
  simt::GlobalBuffer<uint8_t> bytes;
  simt::GlobalBuffer<float> scale;  // see the functions
};

template <class T>
std::unique_ptr<Weight> plain_weight(int64_t rows, int64_t columns, std::mt19937& generator) {
  auto weight = std::make_unique<Weight>(rows, columns, rows * columns * sizeof(T), 0);
  Weight& w = *weight;
  std::normal_distribution<float> normal;
  T* const elements = reinterpret_cast<T*>(w.bytes.data());
  for (int64_t i = 0; i < rows * columns; ++i) {
    elements[i] = simt::from_float<T>(normal(generator));
    w.values[i] = simt::to_float(elements[i]);
  }
  return weight;
}

// int8 with a scale for each row, or (`scale_columns`) for each column.
inline std::unique_ptr<Weight> int8_weight(int64_t rows, int64_t columns, bool scale_columns, std::mt19937& generator) {
  auto weight = std::make_unique<Weight>(rows, columns, rows * columns, scale_columns ? columns : rows);
  Weight& w = *weight;
  std::uniform_real_distribution<float> scale(0.005f, 0.02f);
  for (size_t i = 0; i < w.scale.size(); ++i) w.scale[i] = scale(generator);
  for (int64_t i = 0; i < rows * columns; ++i) {
    const auto code = static_cast<int8_t>(generator());
    w.bytes[i] = static_cast<uint8_t>(code);
    w.values[i] = double{w.scale[scale_columns ? i % columns : i / columns]} * code;
  }
  return weight;
}

// uint8 [rows, columns / 2] with a scale for each group of 64 columns of a row: byte i of a group holds column i in its
// low and column i + 32 in its high bits, as value + 8.
inline std::unique_ptr<Weight> int4_weight(int64_t rows, int64_t columns, std::mt19937& generator) {
  const int64_t groups = columns / 64;
  auto weight = std::make_unique<Weight>(rows, columns, rows * columns / 2, rows * groups);
  Weight& w = *weight;
  std::uniform_real_distribution<float> scale(0.1f, 0.3f);
  for (int64_t group = 0; group < rows * groups; ++group) {
    w.scale[group] = scale(generator);
    for (int64_t i = 0; i < 32; ++i) {
      const auto byte = static_cast<uint8_t>(generator());
      w.bytes[group * 32 + i] = byte;
      w.values[group * 64 + i] = double{w.scale[group]} * (byte % 16 - 8);
      w.values[group * 64 + 32 + i] = double{w.scale[group]} * (byte / 16 - 8);
    }
  }
  return weight;
}

struct ProductShape {
  int64_t M, N, K;
  bool bias = true, residual = true, relu2 = false, norm = false;
};

inline std::string name_of(const ProductShape& s, int seed) {
  return "M " + std::to_string(s.M) + " N " + std::to_string(s.N) + " K " + std::to_string(s.K) + " bias " +
         std::to_string(s.bias) + " residual " + std::to_string(s.residual) + " relu2 " + std::to_string(s.relu2) +
         " norm " + std::to_string(s.norm) + " seed " + std::to_string(seed);
}

// x [M, K], its norm's weight and bias [K], bias [N] and residual [M, N], and what has to come out.
template <class T>
struct Product {
  static constexpr float kEps = 0.25f;  // of the norm; large enough to be missed

  Product(const ProductShape& s, std::mt19937& generator)
      : shape(s), x(s.M * s.K), norm_weight(s.K), norm_bias(s.K), bias(s.N), residual(s.M * s.N) {
    fill_random(x, 0.1, generator);
    fill_random(bias, 0.0, generator);
    fill_random(residual, 0.0, generator);
    if (!s.norm) return;
    for (int64_t m = 0; m < s.M; ++m) {  // rows of different means
      for (int64_t k = 0; k < s.K; ++k) x[m * s.K + k] = simt::from_float<T>(simt::to_float(x[m * s.K + k]) + m - 2);
    }
    fill_random(norm_weight, 1.0, generator, 0.2);
    fill_random(norm_bias, 0.0, generator, 0.5);
  }

  // What the weight multiplies: x [M, K], or its norm rounded to T.
  std::vector<double> factors() const {
    std::vector<double> result(shape.M * shape.K);
    for (size_t i = 0; i < result.size(); ++i) result[i] = simt::to_float(x[i]);
    if (!shape.norm) return result;
    for (int64_t m = 0; m < shape.M; ++m) {
      double* const row = result.data() + m * shape.K;
      double mean = 0.0, variance = 0.0;
      for (int64_t k = 0; k < shape.K; ++k) mean += row[k] / shape.K;
      for (int64_t k = 0; k < shape.K; ++k) variance += (row[k] - mean) * (row[k] - mean) / shape.K;
      for (int64_t k = 0; k < shape.K; ++k) {
        const double scaled = (row[k] - mean) / std::sqrt(variance + kEps) * simt::to_float(norm_weight[k]);
        row[k] = simt::to_float(simt::from_float<T>(static_cast<float>(scaled + simt::to_float(norm_bias[k]))));
      }
    }
    return result;
  }

  // `weight(n, k)` in float64. float32 sums are accurate to about a millionth of the sum of absolute values; a few
  // elements of a norm in float32 are rounded to the other neighbour.
  template <class WeightAt>
  void expect_result(const simt::GlobalBuffer<T>& y, const WeightAt& weight, const std::string& what) const {
    WorstError worst;
    const std::vector<double> input = factors();
    for (int64_t m = 0; m < shape.M; ++m) {
      for (int64_t n = 0; n < shape.N; ++n) {
        double sum = 0.0, terms = 0.0, largest = 0.0;
        for (int64_t k = 0; k < shape.K; ++k) {
          const double term = input[m * shape.K + k] * weight(n, k);
          sum += term;
          terms += std::abs(term);
          largest = std::max(largest, std::abs(term));
        }
        if (shape.bias) sum += simt::to_float(bias[n]);
        double arithmetic = 2e-6 * (terms + 1.0) + (shape.norm ? 8.0 * Format<T>::kRoundoff * largest : 0.0);
        if (shape.relu2) {
          sum = std::max(sum, 0.0);
          arithmetic *= 2.0 * sum + arithmetic;
          sum *= sum;
        }
        const double want = sum + (shape.residual ? double{simt::to_float(residual[m * shape.N + n])} : 0.0);
        worst.add(simt::to_float(y[m * shape.N + n]), want, Format<T>::kRoundoff * std::abs(want) + arithmetic);
      }
    }
    worst.expect_below_one(what);
    y.check();
  }

  const ProductShape shape;
  const simt::GlobalBuffer<T> x, norm_weight, norm_bias, bias, residual;
};

}  // namespace kernel_test
