// decode_attention_ over a cache in 16 bits.
// Cases: float16 bfloat16 splits launcher
#include "decode_cases.h"

namespace {

using kernel_test::DecodeShape;
using kernel_test::expect;
using kernel_test::HeadRow;
using kernel_test::kHeadDim;
using kernel_test::WorstError;
using persimmon::cuda::decode_attention_splits;
using persimmon::cuda::HeadRowsOut;
using persimmon::cuda::launch_decode_attention;
using simt::GlobalBuffer;

template <class T>
class PlainCache {
 public:
  explicit PlainCache(const DecodeShape& s) : shape_(s), data_(s.B() * s.H * s.S * kHeadDim) {}

  void copy_from(const PlainCache& other) const {
    std::memcpy(data_.data(), other.data_.data(), data_.size() * sizeof(T));
  }
  void fill(int64_t row, std::mt19937& generator) const {
    std::normal_distribution<float> normal;
    for (int d = 0; d < kHeadDim; ++d) data_[row * kHeadDim + d] = simt::from_float<T>(normal(generator));
  }
  double value(int64_t row, int d) const { return simt::to_float(data_[row * kHeadDim + d]); }
  bool same(int64_t row, const PlainCache& other) const {
    return std::memcmp(&data_[row * kHeadDim], &other.data_[row * kHeadDim], kHeadDim * sizeof(T)) == 0;
  }
  void expect_copy(int64_t row, const T* elements, const std::string& name) const {
    expect(std::memcmp(&data_[row * kHeadDim], elements, kHeadDim * sizeof(T)) == 0, name);
  }
  void expect_near(WorstError& worst, int64_t row, const HeadRow& want) const {
    kernel_test::expect_row(worst, &data_[row * kHeadDim], want);
  }
  HeadRowsOut rows() const { return kernel_test::cache_rows(data_, shape_, kHeadDim); }
  HeadRowsOut scales() const { return {}; }
  void check() const { data_.check(); }

 private:
  const DecodeShape shape_;
  const GlobalBuffer<T> data_;
};

template <class T>
void check_dtype(int seeds) {
  kernel_test::check_decode_shapes<T, PlainCache<T>>(launch_decode_attention, seeds);
}

void check_splits(int) {
  expect(decode_attention_splits(1, 64, 4096) == 9, "64 heads: nine splits are 576 blocks");
  expect(decode_attention_splits(1, 64, 16384) == 9, "a longer cache does not change that");
  expect(decode_attention_splits(1, 64, 512) == 4, "a split of a full cache has at least 128 rows");
  expect(decode_attention_splits(1, 64, 100) == 1, "a short cache");
  expect(decode_attention_splits(16, 64, 4096) == 1, "a large batch");
  expect(decode_attention_splits(1, 1, 1 << 20) == 64, "the combination stays cheap");
  expect(decode_attention_splits(0, 64, 4096) == 1, "no sequences");
}

void check_launcher(int) { kernel_test::check_decode_launcher(launch_decode_attention, 68); }

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"splits", check_splits},
                           {"launcher", check_launcher}});
}
