// Attention in float64, and the ragged batches that its kernels are tested on.
#pragma once
#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "cuda/attention.cuh"
#include "kernel_test.h"

namespace attention_test {

using simt::GlobalBuffer;

constexpr int kD = 64;

struct AttentionCase {
  int B, H, T, S;
  // One value a sequence, or empty for the default.
  std::vector<int64_t> start = {}, length = {}, offset = {};
  float scale = 0.125f;
  int capacity = 0;  // rows of the cache that k and v are views into, if more than S

  int64_t start_of(int b) const { return start.empty() ? 0 : start[b]; }
  int64_t length_of(int b) const { return length.empty() ? S : length[b]; }
  int64_t offset_of(int b) const { return offset.empty() ? S - T : offset[b]; }
  // The keys that query t sees are [start, end).
  int64_t first_key(int b) const { return std::max<int64_t>(start_of(b), 0); }
  int64_t end_of_keys(int b, int t) const { return std::min<int64_t>({length_of(b), S, offset_of(b) + t + 1}); }

  std::string name() const {
    return "B " + std::to_string(B) + " H " + std::to_string(H) + " T " + std::to_string(T) + " S " +
           std::to_string(S) + (start.empty() ? "" : " ragged") + (offset.empty() ? "" : " with offset");
  }
};

// Values of a case in global memory. Keys that no query sees stay NaN.
template <class T>
class Problem {
 public:
  explicit Problem(const AttentionCase& c)
      : c_(c),
        rows_(std::max(c.S, c.capacity)),
        q_(size_t(c.B) * c.H * c.T * kD),
        k_(size_t(c.B) * c.H * rows_ * kD),
        v_(size_t(c.B) * c.H * rows_ * kD) {
    std::mt19937 generator(static_cast<unsigned>(c.T * 1009 + c.S));
    kernel_test::fill_random(q_, 0.0, generator);
    std::normal_distribution<float> normal;
    for (int b = 0; b < c.B; ++b) {
      for (int h = 0; h < c.H; ++h) {
        for (int64_t s = c.first_key(b); s < c.end_of_keys(b, c.T - 1); ++s) {
          for (int d = 0; d < kD; ++d) {
            k_[key_row(b, h, s) + d] = simt::from_float<T>(normal(generator));
            v_[key_row(b, h, s) + d] = simt::from_float<T>(normal(generator));
          }
        }
      }
    }
    range_ = {upload(c.start, start_), upload(c.length, length_), upload(c.offset, offset_)};
  }

  size_t query_row(int b, int h, int t) const { return ((size_t(b) * c_.T + t) * c_.H + h) * kD; }  // of q and out
  size_t key_row(int b, int h, int64_t s) const { return ((size_t(b) * c_.H + h) * rows_ + s) * kD; }
  size_t lse_index(int b, int h, int t) const { return (size_t(b) * c_.H + h) * c_.T + t; }

  const AttentionCase& shape() const { return c_; }
  const GlobalBuffer<T>& q() const { return q_; }
  const GlobalBuffer<T>& k() const { return k_; }
  const GlobalBuffer<T>& v() const { return v_; }
  const persimmon::cuda::AttentionRange& range() const { return range_; }

  // q is a transposed view of [B, T, H, D], k and v are the first rows of a cache [B, H, capacity, D].
  persimmon::cuda::AttentionTensor query_tensor(const void* data) const {
    return {data, int64_t{c_.T} * c_.H * kD, kD, int64_t{c_.H} * kD};
  }
  persimmon::cuda::AttentionTensor key_tensor(const void* data) const {
    return {data, int64_t{c_.H} * rows_ * kD, int64_t{rows_} * kD, kD};
  }

 private:
  static const int64_t* upload(const std::vector<int64_t>& values, std::unique_ptr<GlobalBuffer<int64_t>>& buffer) {
    if (values.empty()) return nullptr;
    buffer = std::make_unique<GlobalBuffer<int64_t>>(values.size());
    std::copy(values.begin(), values.end(), buffer->data());
    return buffer->data();
  }

  const AttentionCase c_;
  const int rows_;
  GlobalBuffer<T> q_, k_, v_;
  std::unique_ptr<GlobalBuffer<int64_t>> start_, length_, offset_;
  persimmon::cuda::AttentionRange range_;
};

// One query's softmax.
struct Row {
  int64_t begin, end;          // keys
  std::vector<double> weight;  // probabilities of keys `begin` to `end`
  double lse;
};

template <class T>
double dot(const GlobalBuffer<T>& a, size_t a_row, const GlobalBuffer<T>& b, size_t b_row) {
  double sum = 0.0;
  for (int d = 0; d < kD; ++d) sum += double(simt::to_float(a[a_row + d])) * simt::to_float(b[b_row + d]);
  return sum;
}

template <class T>
Row softmax_row(const Problem<T>& problem, int b, int h, int t) {
  const AttentionCase& c = problem.shape();
  Row row{c.first_key(b), c.end_of_keys(b, t), {}, -INFINITY};
  if (row.begin >= row.end) return row;
  double largest = -INFINITY, sum = 0.0;
  for (int64_t s = row.begin; s < row.end; ++s) {
    const double score = dot(problem.q(), problem.query_row(b, h, t), problem.k(), problem.key_row(b, h, s)) * c.scale;
    row.weight.push_back(score);
    largest = std::max(largest, score);
  }
  for (double& weight : row.weight) sum += weight = std::exp(weight - largest);
  for (double& weight : row.weight) weight /= sum;
  row.lse = largest + std::log(sum);
  return row;
}

}  // namespace attention_test
