// qk_norm_rope, and its form that writes a cache, under the emulator against a float64 reference.
// Cases: float32 float16 bfloat16 launcher
#include "cuda/qk_norm_rope.cuh"

#include "head_reference.h"

namespace {

using kernel_test::expect;
using kernel_test::expect_row;
using kernel_test::Format;
using kernel_test::kHeadDim;
using kernel_test::one_head_at_multiples_of_16;
using kernel_test::QkvProblem;
using kernel_test::WorstError;
using persimmon::cuda::launch_qk_norm_rope;
using persimmon::cuda::QkNormRopeParams;
using simt::GlobalBuffer;

struct Case {
  int64_t B, T, H;
  int64_t cache_rows = 0;  // 0: no slots, k and v get a row for each token
  bool shared_angles = false;
};

std::string name_of(const char* result, const Case& c, int seed) {
  return std::string(result) + ", B " + std::to_string(c.B) + " T " + std::to_string(c.T) + " H " +
         std::to_string(c.H) + " cache " + std::to_string(c.cache_rows) + " seed " + std::to_string(seed);
}

// Ragged: each sequence starts elsewhere; one token in five has no slot, and cache_rows itself is outside.
void fill_slots(const GlobalBuffer<int64_t>& slots, const Case& c) {
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t t = 0; t < c.T; ++t) slots[b * c.T + t] = t % 5 == 4 ? -1 : (b * 3 + t) % (c.cache_rows + 1);
  }
}

template <class T>
void check_case(const Case& c, int seeds) {
  const QkvProblem<T> problem(c.B, c.T, c.H, c.shared_angles);
  const GlobalBuffer<int64_t> slots(c.B * c.T);
  fill_slots(slots, c);
  const bool append = c.cache_rows > 0;
  const int64_t S = append ? c.cache_rows : c.T;
  for (int seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const GlobalBuffer<T> q(c.B * c.T * c.H * kHeadDim), k(c.B * S * c.H * kHeadDim), v(k.size());
    const GlobalBuffer<T> untouched(kHeadDim);
    const auto rows = [&](const GlobalBuffer<T>& cache) {
      return persimmon::cuda::HeadRowsOut{cache.data(), c.H * S * kHeadDim, S * kHeadDim, kHeadDim};
    };
    const QkNormRopeParams params{problem.inputs(), append ? slots.data() : nullptr, q.data(), rows(k), rows(v), S};
    expect(launch_qk_norm_rope(params, Format<T>::kDtype, nullptr) == cudaSuccess, "the launch failed");

    WorstError worst;
    std::vector<int64_t> token_of(c.B * S, -1);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t t = 0; t < c.T; ++t) {
        const int64_t slot = append ? slots[b * c.T + t] : t;
        if (slot >= 0 && slot < S) token_of[b * S + slot] = t;
        for (int64_t h = 0; h < c.H; ++h) {
          expect_row(worst, &q[((b * c.H + h) * c.T + t) * kHeadDim], problem.normed_and_rotated(b, t, h, 0));
          if (slot < 0 || slot >= S) continue;
          const int64_t place = ((b * c.H + h) * S + slot) * kHeadDim;
          expect_row(worst, &k[place], problem.normed_and_rotated(b, t, h, 1));
          expect(std::memcmp(&v[place], problem.row(b, t, h, 2), kHeadDim * sizeof(T)) == 0, name_of("v", c, seed));
        }
      }
    }
    worst.expect_below_one(name_of("q and k", c, seed));
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t s = 0; s < S; ++s) {
        for (int64_t h = 0; token_of[b * S + s] < 0 && h < c.H; ++h) {
          const int64_t place = ((b * c.H + h) * S + s) * kHeadDim;
          const bool kept = std::memcmp(&k[place], untouched.data(), kHeadDim * sizeof(T)) == 0 &&
                            std::memcmp(&v[place], untouched.data(), kHeadDim * sizeof(T)) == 0;
          expect(kept, name_of("a row that no token goes to was written", c, seed));
        }
      }
    }
    for (const auto* buffer : {&q, &k, &v}) buffer->check();
  }
}

template <class T>
void check_dtype(int seeds) {
  for (const Case& c : {Case{1, 1, 1}, Case{1, 7, 3}, Case{2, 31, 1}, Case{3, 11, 1}, Case{2, 13, 8}}) {
    check_case<T>(c, seeds);
  }
  check_case<T>({2, 5, 3, 0, true}, seeds);
  for (const Case& c : {Case{1, 1, 2, 1}, Case{2, 4, 2, 3}, Case{3, 4, 2, 37}, Case{2, 8, 5, 64, true}}) {
    check_case<T>(c, seeds);
  }
  check_case<T>({0, 4, 2}, seeds);
}

void check_launcher(int) {
  void* const aligned = reinterpret_cast<void*>(uintptr_t{4096});
  QkNormRopeParams params{one_head_at_multiples_of_16(), nullptr, aligned, {aligned, 64, 64, 64},
                          {aligned, 64, 64, 64},         1};
  const auto launch = [&] { return launch_qk_norm_rope(params, simt::Dtype::kBFloat16, nullptr); };
  params.in.T = -1;
  expect(launch() == cudaErrorInvalidValue, "negative sizes are an error");
  params.in.T = 1;
  params.k.row_stride = 68;
  expect(launch() == cudaErrorInvalidValue, "a cache whose rows are not multiples of 16 bytes is an error");
  params.k.row_stride = 64;
  params.in.qkv = reinterpret_cast<void*>(uintptr_t{4098});
  expect(launch() == cudaErrorInvalidValue, "an address that is not a multiple of 16 is an error");
}

}  // namespace

int main(int argc, char** argv) {
  return kernel_test::run(argc, argv,
                          {{"float32", check_dtype<float>},
                           {"float16", check_dtype<simt::fp16>},
                           {"bfloat16", check_dtype<simt::bf16>},
                           {"launcher", check_launcher}});
}
