// qk_norm_rope_backward under the emulator against a float64 reference.
// Cases: float32 float16 bfloat16 blocks
#include "cuda/qk_norm_rope_backward.cuh"

#include "head_reference.h"

namespace {

using kernel_test::expect;
using kernel_test::fill_random;
using kernel_test::Format;
using kernel_test::head_row;
using kernel_test::HeadRow;
using kernel_test::kHeadDim;
using kernel_test::kHeadEps;
using kernel_test::normalised;
using kernel_test::QkvProblem;
using kernel_test::rotated;
using kernel_test::WorstError;
using persimmon::cuda::launch_qk_norm_rope_backward;
using persimmon::cuda::qk_norm_rope_backward_blocks;
using persimmon::cuda::QkNormRopeBackwardParams;
using simt::GlobalBuffer;

constexpr double kArithmetic = 4e-6;

struct Case {
  int64_t B, T, H;
};

std::string name_of(const char* result, const Case& c, int seed) {
  return std::string(result) + ", B " + std::to_string(c.B) + " T " + std::to_string(c.T) + " H " +
         std::to_string(c.H) + " seed " + std::to_string(seed);
}

// Sums for one norm: dweight and dbias, and the absolute values of their terms, which float32 sums are accurate to.
struct Sums {
  HeadRow dweight{}, dbias{}, dweight_terms{}, dbias_terms{};
};

template <class T>
HeadRow backward_row(const T* x, const T* dy, const T* weight, const float* cos, const float* sin, Sums& sums) {
  const HeadRow g = rotated(head_row(dy), cos, sin, -1.0);
  const auto [z, scale] = normalised(head_row(x), kHeadEps);
  double mean_u = 0.0, mean_uz = 0.0;
  for (int d = 0; d < kHeadDim; ++d) {
    mean_u += g[d] * simt::to_float(weight[d]) / kHeadDim;
    mean_uz += g[d] * simt::to_float(weight[d]) * z[d] / kHeadDim;
    sums.dweight[d] += g[d] * z[d];
    sums.dbias[d] += g[d];
    sums.dweight_terms[d] += std::abs(g[d] * z[d]);
    sums.dbias_terms[d] += std::abs(g[d]);
  }
  HeadRow dx;
  for (int d = 0; d < kHeadDim; ++d) dx[d] = (g[d] * simt::to_float(weight[d]) - mean_u - z[d] * mean_uz) * scale;
  return dx;
}

template <class T>
void expect_gradient(WorstError& worst, const T* got, const HeadRow& want) {
  for (int d = 0; d < kHeadDim; ++d) {
    worst.add(simt::to_float(got[d]), want[d],
              Format<T>::kRoundoff * std::abs(want[d]) + 4 * kArithmetic * (1.0 + std::abs(want[d])));
  }
}

template <class T>
void expect_sum(WorstError& worst, const GlobalBuffer<T>& got, const HeadRow& want, const HeadRow& terms) {
  for (int d = 0; d < kHeadDim; ++d) {
    worst.add(simt::to_float(got[d]), want[d],
              Format<T>::kRoundoff * std::abs(want[d]) + kArithmetic * (1.0 + terms[d]));
  }
}

template <class T>
void check_case(const Case& c, int seeds) {
  std::mt19937 generator(static_cast<unsigned>(c.B * 1009 + c.T * 31 + c.H));
  const int64_t heads = c.B * c.T * c.H, count = heads * kHeadDim;
  const QkvProblem<T> problem(c.B, c.T, c.H);
  const GlobalBuffer<T> dq(count), dk(count), dv(count);
  for (const auto* buffer : {&dq, &dk, &dv}) fill_random(*buffer, 0.1, generator);
  const GlobalBuffer<T> first_sums(4 * kHeadDim);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> dqkv(count * 3);
    const GlobalBuffer<T> sums[4] = {GlobalBuffer<T>(kHeadDim), GlobalBuffer<T>(kHeadDim), GlobalBuffer<T>(kHeadDim),
                                     GlobalBuffer<T>(kHeadDim)};
    const GlobalBuffer<float> partials(qk_norm_rope_backward_blocks(heads, Format<T>::kDtype) * 4 * kHeadDim);
    const QkNormRopeBackwardParams params{problem.inputs(),
                                          dq.data(),
                                          dk.data(),
                                          dv.data(),
                                          dqkv.data(),
                                          partials.data(),
                                          {sums[0].data(), sums[1].data(), sums[2].data(), sums[3].data()}};
    expect(launch_qk_norm_rope_backward(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");

    WorstError dx_error, sum_error;
    Sums q_sums, k_sums;
    for (int64_t row = 0; row < heads; ++row) {
      const int64_t h = row % c.H, t = row / c.H % c.T, b = row / c.H / c.T;
      const int64_t grad = ((b * c.H + h) * c.T + t) * kHeadDim;
      const float *cos = problem.cos_of(b, t), *sin = problem.sin_of(b, t);
      const T *x = problem.row(b, t, h, 0), *dx = &dqkv[row * 3 * kHeadDim];
      const T *q_weight = problem.norms[0].data(), *k_weight = problem.norms[2].data();
      expect_gradient(dx_error, dx, backward_row(x, &dq[grad], q_weight, cos, sin, q_sums));
      expect_gradient(dx_error, dx + kHeadDim, backward_row(x + kHeadDim, &dk[grad], k_weight, cos, sin, k_sums));
      expect(std::memcmp(dx + 2 * kHeadDim, &dv[grad], kHeadDim * sizeof(T)) == 0, name_of("dv", c, seed));
    }
    expect_sum(sum_error, sums[0], q_sums.dweight, q_sums.dweight_terms);
    expect_sum(sum_error, sums[1], q_sums.dbias, q_sums.dbias_terms);
    expect_sum(sum_error, sums[2], k_sums.dweight, k_sums.dweight_terms);
    expect_sum(sum_error, sums[3], k_sums.dbias, k_sums.dbias_terms);
    dx_error.expect_below_one(name_of("dqkv", c, seed));
    sum_error.expect_below_one(name_of("sums", c, seed));
    for (int i = 0; i < 4; ++i) {
      T* const first = first_sums.data() + i * kHeadDim;
      if (seed == 0) std::memcpy(first, sums[i].data(), kHeadDim * sizeof(T));
      expect(std::memcmp(first, sums[i].data(), kHeadDim * sizeof(T)) == 0, name_of("bits of the sums", c, seed));
      sums[i].check();
    }
    dqkv.check();
    partials.check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const Case& c : {Case{1, 1, 1}, Case{1, 31, 1}, Case{1, 32, 1}, Case{1, 33, 1}, Case{3, 11, 5}, Case{0, 3, 2}}) {
    check_case<T>(c, seeds);
  }
  check_case<T>({2, 97, 7}, seeds);
}

void check_blocks(int) {
  expect(qk_norm_rope_backward_blocks(4096 * 64, simt::Dtype::kBFloat16) == 528, "the grid is bounded");
  expect(qk_norm_rope_backward_blocks(129, simt::Dtype::kBFloat16) == 2, "32 groups a block, 4 heads a group");
  expect(qk_norm_rope_backward_blocks(129, simt::Dtype::kFloat32) == 3, "16 groups a block, 4 heads a group");
  expect(qk_norm_rope_backward_blocks(0, simt::Dtype::kFloat32) == 0, "no heads");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float32", check_dtype<float>},
                           {"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"blocks", check_blocks}});
}
