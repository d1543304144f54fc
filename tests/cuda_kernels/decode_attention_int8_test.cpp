// decode_attention_int8_: the cache holds int8 codes and a float32 scale for each row.
// Cases: float16 bfloat16 special launcher
#include "decode_cases.h"

namespace {

using kernel_test::DecodeProblem;
using kernel_test::DecodeRun;
using kernel_test::DecodeShape;
using kernel_test::expect;
using kernel_test::Format;
using kernel_test::HeadRow;
using kernel_test::kHeadDim;
using kernel_test::WorstError;
using persimmon::cuda::HeadRowsOut;
using persimmon::cuda::launch_decode_attention_int8;
using simt::GlobalBuffer;

template <class T>
class Int8Cache {
 public:
  explicit Int8Cache(const DecodeShape& s)
      : shape_(s), codes_(s.B() * s.H * s.S * kHeadDim), scales_(s.B() * s.H * s.S) {}

  void copy_from(const Int8Cache& other) const {
    std::memcpy(codes_.data(), other.codes_.data(), codes_.size());
    std::memcpy(scales_.data(), other.scales_.data(), scales_.size() * sizeof(float));
  }
  void fill(int64_t row, std::mt19937& generator) const {
    for (int d = 0; d < kHeadDim; ++d)
      codes_[row * kHeadDim + d] = std::uniform_int_distribution<int>(-127, 127)(generator);
    // The codes' root mean square is 73: values of about 1.
    scales_[row] = std::uniform_real_distribution<float>(0.005f, 0.018f)(generator);
  }
  double value(int64_t row, int d) const { return double{scales_[row]} * codes_[row * kHeadDim + d]; }
  bool same(int64_t row, const Int8Cache& other) const {
    return std::memcmp(&codes_[row * kHeadDim], &other.codes_[row * kHeadDim], kHeadDim) == 0 &&
           std::memcmp(&scales_[row], &other.scales_[row], sizeof(float)) == 0;
  }
  void expect_copy(int64_t row, const T* elements, const std::string& name) const {
    float top = 0.0f;
    for (int d = 0; d < kHeadDim; ++d) top = std::max(top, std::abs(simt::to_float(elements[d])));
    bool same = scales_[row] == top / 127.0f;
    for (int d = 0; d < kHeadDim; ++d) {
      same = same && codes_[row * kHeadDim + d] == std::nearbyint(simt::to_float(elements[d]) / (top / 127.0f));
    }
    expect(same, name);
  }
  void expect_near(WorstError& worst, int64_t row, const HeadRow& want) const {
    int top = 0;
    for (int d = 0; d < kHeadDim; ++d) {
      const double rounding = Format<T>::kRoundoff * std::abs(want[d]) + 4e-6 * (1.0 + std::abs(want[d]));
      worst.add(value(row, d), want[d], rounding + 0.5 * scales_[row]);
      top = std::max(top, std::abs(int{codes_[row * kHeadDim + d]}));
    }
    worst.add(top, 127.0, 0.5);  // the whole range is in use
  }
  HeadRowsOut rows() const { return kernel_test::cache_rows(codes_, shape_, kHeadDim); }
  HeadRowsOut scales() const { return kernel_test::cache_rows(scales_, shape_, 1); }
  void check() const {
    codes_.check();
    scales_.check();
  }

 private:
  const DecodeShape shape_;
  const GlobalBuffer<int8_t> codes_;
  const GlobalBuffer<float> scales_;
};

template <class T>
void check_dtype(int seeds) {
  kernel_test::check_decode_shapes<T, Int8Cache<T>>(launch_decode_attention_int8, seeds);
}

// A row of zeros stays zeros; of a row with a NaN or an infinity nothing finite remains.
void check_special(int) {
  using T = simt::bf16;
  const auto result_with = [](const std::initializer_list<float>& v) {
    const DecodeProblem<T, Int8Cache<T>> p({1, 1, 8, {0}});
    T* const row = p.qkv.row(0, 0, 0, 2);
    for (int d = 0; d < kHeadDim; ++d)
      row[d] = simt::from_float<T>(d < static_cast<int>(v.size()) ? v.begin()[d] : 0.0f);
    const DecodeRun<T, Int8Cache<T>> found(p, launch_decode_attention_int8);
    std::vector<float> out;
    for (int d = 0; d < kHeadDim; ++d) out.push_back(simt::to_float(found.out[d]));
    return out;
  };
  for (const float x : result_with({})) expect(x == 0.0f, "zeros");
  expect(result_with({1e-39f})[0] < 1e-38f, "a subnormal number");
  for (const float special : {NAN, INFINITY, -INFINITY}) {
    for (const float x : result_with({1.0f, special})) expect(!std::isfinite(x), "what is not finite is not lost");
  }
}

void check_launcher(int) { kernel_test::check_decode_launcher(launch_decode_attention_int8, 68); }

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"special", check_special},
                           {"launcher", check_launcher}});
}
