// The test of a forward attention kernel, given its launcher: results against the float64 reference, and what it
// refuses.
#pragma once
#include "attention_reference.h"

namespace attention_test {

using kernel_test::expect;
using kernel_test::Format;
using persimmon::cuda::AttentionParams;
using simt::Dtype;

using Launcher = cudaError_t (*)(const AttentionParams&, Dtype, cudaStream_t);

constexpr double kArithmetic = 4e-6;  // relative error of the fp32 sums and of exp2

// In units of what is allowed: every probability and the result are rounded once to T.
template <class T>
double worst_error(const Problem<T>& problem, const GlobalBuffer<T>& out, const GlobalBuffer<float>& lse) {
  const AttentionCase& c = problem.shape();
  double worst = 0.0;
  const auto note = [&](double error) {
    if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
  };
  for (int b = 0; b < c.B; ++b) {
    for (int h = 0; h < c.H; ++h) {
      for (int t = 0; t < c.T; ++t) {
        const Row row = attention_test::softmax_row(problem, b, h, t);
        const double got_lse = lse[problem.lse_index(b, h, t)];
        if (row.begin >= row.end) {
          note(got_lse == -INFINITY ? 0.0 : INFINITY);
        } else {
          note(std::abs(got_lse - row.lse) / (kArithmetic * (4.0 + std::abs(row.lse))));
        }
        for (int d = 0; d < kD; ++d) {
          double want = 0.0, size = 0.0;
          for (int64_t s = row.begin; s < row.end; ++s) {
            const double term = row.weight[s - row.begin] * simt::to_float(problem.v()[problem.key_row(b, h, s) + d]);
            want += term;
            size += std::abs(term);
          }
          const double allowed = Format<T>::kRoundoff * (std::abs(want) + size) + kArithmetic * (size + 0.01);
          note(std::abs(simt::to_float(out[problem.query_row(b, h, t) + d]) - want) / allowed);
        }
      }
    }
  }
  return worst;
}

template <class T, Launcher kLaunch, cudaError_t kWithoutKeys>
void check_case(const AttentionCase& c, int seeds) {
  const Problem<T> problem(c);
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> out(problem.q().size());
    const GlobalBuffer<float> lse(size_t(c.B) * c.H * c.T);
    const AttentionParams params{
        .q = problem.query_tensor(problem.q().data()),
        .k = problem.key_tensor(problem.k().data()),
        .v = problem.key_tensor(problem.v().data()),
        .out = out.data(),
        .lse = lse.data(),
        .range = problem.range(),
        .batch = c.B,
        .heads = c.H,
        .queries = c.T,
        .keys = c.S,
        .scale = c.scale,
    };
    const cudaError_t expected = c.S == 0 && c.B * c.H * c.T > 0 ? kWithoutKeys : cudaSuccess;
    expect(kLaunch(params, Format<T>::kDtype, nullptr) == expected, "the launch's result, " + c.name());
    if (expected != cudaSuccess) continue;
    kernel_test::expect_error_below_one(worst_error(problem, out, lse), c.name() + " seed " + std::to_string(seed));
    out.check();
    lse.check();
  }
}

template <class T, Launcher kLaunch, cudaError_t kWithoutKeys>
void check_dtype(int seeds) {
  for (const int rows : {1, 17, 63, 64, 65}) check_case<T, kLaunch, kWithoutKeys>({1, 2, rows, rows}, seeds);
  for (const int rows : {127, 128, 129, 257}) check_case<T, kLaunch, kWithoutKeys>({1, 1, rows, rows}, seeds);
  check_case<T, kLaunch, kWithoutKeys>({1, 1, 20, 700}, seeds);  // every buffer is used several times
  check_case<T, kLaunch, kWithoutKeys>({1, 1, 3, 200}, seeds);   // a cached prefix
  check_case<T, kLaunch, kWithoutKeys>({1, 1, 130, 70, {}, {}, {}, 0.125f, 100},
                                       seeds);                                     // the first queries see nothing
  check_case<T, kLaunch, kWithoutKeys>({1, 1, 5, 9, {}, {}, {}, -0.3f}, seeds);    // a negative scale
  check_case<T, kLaunch, kWithoutKeys>({1, 1, 5, 9, {}, {}, {}, 0.0f}, seeds);     // the mean of what is visible
  check_case<T, kLaunch, kWithoutKeys>({1, 1, 65, 65, {}, {}, {}, 40.0f}, seeds);  // exponents beyond fp32
  check_case<T, kLaunch, kWithoutKeys>({2, 1, 2, 0}, seeds);                       // no keys at all
  check_case<T, kLaunch, kWithoutKeys>({0, 1, 2, 3}, 1);
  check_case<T, kLaunch, kWithoutKeys>({1, 0, 2, 3}, 1);
  check_case<T, kLaunch, kWithoutKeys>({1, 1, 0, 3}, 1);
  // Left padding, lengths shorter than the cache, a prefix, a start past the end, and an offset that sees nothing.
  check_case<T, kLaunch, kWithoutKeys>(
      {5, 2, 33, 150, {0, 70, 5, 149, 3}, {150, 150, 100, 20, 150}, {117, 117, 66, 117, -40}, 0.2f, 160}, seeds);
  check_case<T, kLaunch, kWithoutKeys>({2, 1, 70, 130, {0, 61}, {130, 129}, {60, int64_t{1} << 40}}, seeds);
}

template <Launcher kLaunch>
void check_refused() {
  alignas(16) char memory[64];
  AttentionParams params{};
  params.q = params.k = params.v = {memory, 64, 64, 64};
  params.queries = params.keys = params.heads = params.batch = 1;
  const auto launch = [&](Dtype dtype = Dtype::kBFloat16) { return kLaunch(params, dtype, nullptr); };
  expect(launch(Dtype::kFloat32) == cudaErrorInvalidValue, "float32 is refused");
  params.heads = 65536;
  expect(launch() == cudaErrorInvalidValue, "more heads than a grid takes are refused");
  params.heads = -1;
  expect(launch() == cudaErrorInvalidValue, "negative sizes are refused");
  params.heads = 1;
  params.k.row_stride = 68;
  expect(launch() == cudaErrorInvalidValue, "rows that are not aligned are refused");
  params.k.row_stride = 64;
  params.v.data = memory + 2;
  expect(launch() == cudaErrorInvalidValue, "an address that is not aligned is refused");
}

// kWithoutKeys: what the launcher returns where there are no keys at all.
template <Launcher kLaunch, cudaError_t kWithoutKeys>
int run_forward(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"bfloat16", check_dtype<simt::bf16, kLaunch, kWithoutKeys>},
                           {"float16", check_dtype<simt::fp16, kLaunch, kWithoutKeys>},
                           {"refused", [](int) { check_refused<kLaunch>(); }}});
}

}  // namespace attention_test
