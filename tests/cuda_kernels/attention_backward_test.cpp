// attention_backward under the emulator against a float64 reference.
// Cases: bfloat16 float16 refused
#include "cuda/attention_backward.cuh"

#include "attention_reference.h"

namespace {

using attention_test::AttentionCase;
using attention_test::kD;
using attention_test::Problem;
using attention_test::Row;
using kernel_test::expect;
using kernel_test::Format;
using persimmon::cuda::AttentionBackwardParams;
using persimmon::cuda::launch_attention_backward;
using simt::Dtype;
using simt::GlobalBuffer;

constexpr double kArithmetic = 1e-5;  // relative error of the fp32 sums, of exp2 and of the log-sum-exp

// The forward result and the gradients, with the error that each gradient may have.
template <class T>
struct Reference {
  GlobalBuffer<T> out, dout;                                           // [B, T, H, D]
  GlobalBuffer<float> lse;                                             // [B, H, T]
  std::vector<double> dq, dk, dv, dq_allowed, dk_allowed, dv_allowed;  // [B, H, rows, D]

  explicit Reference(const Problem<T>& problem);

 private:
  void add_query(const Problem<T>& problem, int b, int h, int t);
};

template <class T>
Reference<T>::Reference(const Problem<T>& problem)
    : out(problem.q().size()), dout(problem.q().size()), lse(problem.q().size() / kD) {
  const AttentionCase& c = problem.shape();
  const size_t query_elements = problem.q().size(), key_elements = size_t(c.B) * c.H * c.S * kD;
  for (auto* values : {&dq, &dq_allowed}) values->assign(query_elements, 0.0);
  for (auto* values : {&dk, &dk_allowed, &dv, &dv_allowed}) values->assign(key_elements, 0.0);
  std::mt19937 generator(static_cast<unsigned>(c.T * 31 + c.S));
  kernel_test::fill_random(dout, 0.0, generator);
  for (int b = 0; b < c.B; ++b) {
    for (int h = 0; h < c.H; ++h) {
      for (int t = 0; t < c.T; ++t) add_query(problem, b, h, t);
    }
  }
}

// Roundings to T: of p and dscore before their products, of the forward result, which shifts delta, and of the
// gradient.
template <class T>
void Reference<T>::add_query(const Problem<T>& problem, int b, int h, int t) {
  constexpr double kRoundoff = Format<T>::kRoundoff;
  const AttentionCase& c = problem.shape();
  const Row row = attention_test::softmax_row(problem, b, h, t);
  const size_t query = problem.query_row(b, h, t);
  const size_t dq_row = problem.lse_index(b, h, t) * kD;
  lse[problem.lse_index(b, h, t)] = static_cast<float>(row.lse);
  double result[kD] = {}, delta = 0.0, delta_size = 0.0;
  for (int64_t s = row.begin; s < row.end; ++s) {
    const size_t key = problem.key_row(b, h, s);
    for (int d = 0; d < kD; ++d) result[d] += row.weight[s - row.begin] * simt::to_float(problem.v()[key + d]);
  }
  for (int d = 0; d < kD; ++d) {
    out[query + d] = simt::from_float<T>(static_cast<float>(result[d]));
    delta += result[d] * simt::to_float(dout[query + d]);
    delta_size += std::abs(result[d] * simt::to_float(dout[query + d]));
  }
  for (int64_t s = row.begin; s < row.end; ++s) {
    const size_t key = problem.key_row(b, h, s), dk_row = ((size_t(b) * c.H + h) * c.S + s) * kD;
    const double weight = row.weight[s - row.begin], dweight = attention_test::dot(dout, query, problem.v(), key);
    const double dscore = weight * (dweight - delta) * c.scale;
    const double dscore_error = (kRoundoff * std::abs(dscore) + std::abs(c.scale) * weight * kRoundoff * delta_size) +
                                kArithmetic * std::abs(c.scale) * weight * (std::abs(dweight) + delta_size + 1.0);
    for (int d = 0; d < kD; ++d) {
      const double q = simt::to_float(problem.q()[query + d]), k = simt::to_float(problem.k()[key + d]);
      const double gradient = simt::to_float(dout[query + d]);
      dq[dq_row + d] += dscore * k;
      dk[dk_row + d] += dscore * q;
      dv[dk_row + d] += weight * gradient;
      dq_allowed[dq_row + d] += dscore_error * std::abs(k);
      dk_allowed[dk_row + d] += dscore_error * std::abs(q);
      dv_allowed[dk_row + d] += (kRoundoff + kArithmetic) * weight * std::abs(gradient);
    }
  }
}

template <class T>
void compare(const GlobalBuffer<T>& got, const std::vector<double>& want, const std::vector<double>& allowed,
             const std::string& what) {
  double worst = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double tolerance = allowed[i] + Format<T>::kRoundoff * std::abs(want[i]) + 1e-7;
    const double error = std::abs(simt::to_float(got[i]) - want[i]) / tolerance;
    if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
  }
  kernel_test::expect_error_below_one(worst, what);
  got.check();
}

template <class T>
void check_case(const AttentionCase& c, int seeds) {
  const Problem<T> problem(c);
  const Reference<T> reference(problem);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> dq(reference.dq.size()), dk(reference.dk.size()), dv(reference.dv.size());
    const GlobalBuffer<float> delta(reference.lse.size());
    const AttentionBackwardParams params{
        .q = problem.query_tensor(problem.q().data()),
        .k = problem.key_tensor(problem.k().data()),
        .v = problem.key_tensor(problem.v().data()),
        .dout = problem.query_tensor(reference.dout.data()),
        .out = problem.query_tensor(reference.out.data()),
        .lse = reference.lse.data(),
        .delta = delta.data(),
        .dq = dq.data(),
        .dk = dk.data(),
        .dv = dv.data(),
        .range = problem.range(),
        .batch = c.B,
        .heads = c.H,
        .queries = c.T,
        .keys = c.S,
        .scale = c.scale,
    };
    expect(launch_attention_backward(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");
    const std::string name = c.name() + " seed " + std::to_string(seed);
    compare(dq, reference.dq, reference.dq_allowed, "dq, " + name);
    compare(dk, reference.dk, reference.dk_allowed, "dk, " + name);
    compare(dv, reference.dv, reference.dv_allowed, "dv, " + name);
    delta.check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const int rows : {1, 17, 63, 64, 65}) check_case<T>({1, 2, rows, rows}, seeds);
  for (const int rows : {127, 128, 129, 200}) check_case<T>({1, 1, rows, rows}, seeds);
  check_case<T>({1, 1, 3, 200}, seeds);                            // a cached prefix
  check_case<T>({1, 1, 130, 70, {}, {}, {}, 0.125f, 100}, seeds);  // the first queries see nothing
  check_case<T>({1, 1, 5, 9, {}, {}, {}, -0.3f}, seeds);
  check_case<T>({1, 1, 5, 9, {}, {}, {}, 0.0f}, seeds);
  check_case<T>({2, 1, 2, 0}, seeds);
  check_case<T>({2, 1, 0, 3}, seeds);  // keys that nobody sees get zeros
  check_case<T>({0, 1, 2, 3}, seeds);
  check_case<T>({1, 0, 2, 3}, seeds);
  check_case<T>({5, 2, 33, 150, {0, 70, 5, 149, 3}, {150, 150, 100, 20, 150}, {117, 117, 66, 117, -40}, 0.2f, 160},
                seeds);
  check_case<T>({2, 1, 70, 130, {0, 61}, {130, 129}, {60, int64_t{1} << 40}}, seeds);
}

void check_refused() {
  alignas(16) char memory[64];
  AttentionBackwardParams params{};
  params.q = params.k = params.v = params.dout = params.out = {memory, 64, 64, 64};
  params.queries = params.keys = params.heads = params.batch = 1;
  const auto launch = [&](Dtype dtype = Dtype::kBFloat16) { return launch_attention_backward(params, dtype, nullptr); };
  expect(launch(Dtype::kFloat32) == cudaErrorInvalidValue, "float32 is refused");
  params.batch = 65536;
  expect(launch() == cudaErrorInvalidValue, "more sequences than a grid takes are refused");
  params.batch = 1;
  params.dout.head_stride = 4;
  expect(launch() == cudaErrorInvalidValue, "rows that are not aligned are refused");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(
      argc, argv, {{"bfloat16", check_dtype<simt::bf16>}, {"float16", check_dtype<simt::fp16>}, {"refused", [](int) {
                                                                                                   check_refused();
                                                                                                 }}});
}
