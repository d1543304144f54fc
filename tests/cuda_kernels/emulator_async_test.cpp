// The emulator's own tests: cp.async, ldmatrix and mma.
#include <vector>

#include "emulator_test.h"

namespace {

using emulator_test::expect;
using simt::bf16;
using simt::GlobalBuffer;

enum class Bug {
  kNone,
  kNoWait,
  kWeakWait,
  kNoBarrierAfterWait,
  kNoBarrierBeforeRefill,
  kNoCommit,
  kNeverWaits,
  kPastEnd,
  kMisaligned,
};

constexpr int kTiles = 5;

// Each tile of 64 floats is copied into one of two buffers while the other is read, by 16 of the 64 threads; every
// thread reads what another copied. A source beyond `count` gives zeros.
template <Bug kBug>
__global__ void sum_tiles(const float* in, int count, float* out) {
  SIMT_DYNAMIC_SHARED(memory);
  const auto buffers = simt::shared_region<float>(memory, 0, 128, "buffers");
  const auto load = [&](int tile) {
    const int element = tile * 64 + threadIdx.x * 4;
    const bool valid = element < count;
    int place = tile % 2 * 64 + threadIdx.x * 4;
    if (kBug == Bug::kPastEnd) place += 4;
    if (kBug == Bug::kMisaligned) place += 1;
    if (threadIdx.x < 16 && tile < kTiles) simt::cp_async16(buffers + place, valid ? in + element : nullptr, valid);
    if (kBug != Bug::kNoCommit) simt::cp_async_commit();
  };
  load(0);
  float sum = 0.0f;
  for (int tile = 0; tile < kTiles; ++tile) {
    load(tile + 1);
    if (kBug == Bug::kWeakWait) {
      simt::cp_async_wait<2>();
    } else if (kBug != Bug::kNoWait && kBug != Bug::kNeverWaits) {
      simt::cp_async_wait<1>();
    }
    if (kBug != Bug::kNoBarrierAfterWait) __syncthreads();
    if (kBug != Bug::kNeverWaits) sum += buffers[tile % 2 * 64 + 63 - static_cast<int>(threadIdx.x)];
    if (kBug == Bug::kNeverWaits) break;
    if (kBug != Bug::kNoBarrierBeforeRefill) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

template <Bug kBug>
void launch_sum(const GlobalBuffer<float>& in, const GlobalBuffer<float>& out) {
  const int count = static_cast<int>(in.size());
  simt::launch_shared(sum_tiles<kBug>, dim3(2), dim3(64), 512, nullptr, in.data(), count, out.data());
}

// 4 bytes a copy, one a thread.
__global__ void copy_words(const float* in, float* out) {
  SIMT_SHARED(float, words, 32);
  simt::cp_async4(words + threadIdx.x, in + threadIdx.x, threadIdx.x < 30);
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
  __syncwarp();
  out[threadIdx.x] = words[31 - static_cast<int>(threadIdx.x)];
}

// d [16, 16] = a [16, 16] b, where b [16, 16] is stored by columns (kTranspose false) or by rows.
template <class T, bool kTranspose>
__global__ void multiply(const T* a, const T* b, float* d) {
  SIMT_SHARED(T, a_tile, 256);
  SIMT_SHARED(T, b_tile, 256);
  const int lane = threadIdx.x, row = lane / 2, half = lane % 2 * 8;
  simt::cp_async16(a_tile + (row * 16 + half), a + row * 16 + half);
  simt::cp_async16(b_tile + (row * 16 + half), b + row * 16 + half);
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
  __syncwarp();
  uint32_t a_words[4], b_words[4];
  simt::ldmatrix_x4(a_words, a_tile + (lane % 16 * 16 + lane / 16 * 8));
  if (kTranspose) {
    simt::ldmatrix_x4_trans(b_words, b_tile + (lane % 16 * 16 + lane / 16 * 8));
  } else {
    simt::ldmatrix_x4(b_words, b_tile + ((lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8));
  }
  float sums[2][4] = {};
  simt::mma_m16n8k16<T>(sums[0], a_words, b_words[0], b_words[1]);
  simt::mma_m16n8k16<T>(sums[1], a_words, b_words[2], b_words[3]);
  for (int n = 0; n < 2; ++n) {
    for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 16 + n * 8 + lane % 4 * 2 + i % 2] = sums[n][i];
  }
}

template <class T, bool kTranspose>
void check_multiply() {
  const GlobalBuffer<T> a(256), b(256);
  const GlobalBuffer<float> d(256);
  for (int i = 0; i < 256; ++i) {
    a[i] = simt::from_float<T>(static_cast<float>(i % 7 - 3));
    b[i] = simt::from_float<T>(static_cast<float>(i % 11 - 5));
  }
  simt::launch(multiply<T, kTranspose>, dim3(1), dim3(32), nullptr, a.data(), b.data(), d.data());
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float want = 0.0f;
      for (int k = 0; k < 16; ++k) {
        want += simt::to_float(a[m * 16 + k]) * simt::to_float(b[kTranspose ? k * 16 + n : n * 16 + k]);
      }
      expect(d[m * 16 + n] == want, "multiply");
    }
  }
}

void check_right_kernels() {
  const GlobalBuffer<float> in(kTiles * 64 - 8), out(64), few(30), words(32);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  for (size_t i = 0; i < few.size(); ++i) few[i] = static_cast<float>(i);
  for (int seed = 0; seed < emulator_test::kSeeds; ++seed) {
    simt::set_seed(seed);
    launch_sum<Bug::kNone>(in, out);
    for (int thread = 0; thread < 64; ++thread) {
      float want = 0.0f;
      for (size_t i = 63 - thread; i < in.size(); i += 64) want += in[i];
      expect(out[thread] == want, "sum_tiles");
    }
    simt::launch(copy_words, dim3(1), dim3(32), nullptr, few.data(), words.data());
    for (int i = 0; i < 32; ++i) expect(words[i] == (i < 2 ? 0.0f : static_cast<float>(31 - i)), "copy_words");
    check_multiply<bf16, false>();
    check_multiply<bf16, true>();
    check_multiply<simt::fp16, false>();
    check_multiply<simt::fp16, true>();
  }
}

#if !defined(__CUDACC__)
__global__ void half_warp_multiplies(float* out) {
  float d[4] = {};
  const uint32_t a[4] = {};
  if (threadIdx.x < 16) simt::mma_m16n8k16<bf16>(d, a, 0, 0);
  out[threadIdx.x] = d[0];
}

void check_wrong_kernels() {
  const GlobalBuffer<float> in(kTiles * 64), out(64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = 0.0f;  // right values whatever happens: only the checks can tell
  const char* const too_early = "is used before an asynchronous copy into it was waited for";
  emulator_test::expect_error(too_early, [&] { launch_sum<Bug::kNoWait>(in, out); });
  emulator_test::expect_error(too_early, [&] { launch_sum<Bug::kWeakWait>(in, out); });
  emulator_test::expect_error(too_early, [&] { launch_sum<Bug::kNoCommit>(in, out); });
  emulator_test::expect_error("buffers[", [&] { launch_sum<Bug::kNoBarrierAfterWait>(in, out); });
  emulator_test::expect_error("buffers[", [&] { launch_sum<Bug::kNoBarrierBeforeRefill>(in, out); });
  emulator_test::expect_error("exits while its cp.async copies are in flight",
                              [&] { launch_sum<Bug::kNeverWaits>(in, out); });
  emulator_test::expect_error("outside the shared array buffers", [&] { launch_sum<Bug::kPastEnd>(in, out); });
  emulator_test::expect_error("is not aligned", [&] { launch_sum<Bug::kMisaligned>(in, out); });
  const GlobalBuffer<float> short_in(kTiles * 64 - 4);
  emulator_test::expect_error("memory fault", [&] {
    simt::launch_shared(sum_tiles<Bug::kNone>, dim3(1), dim3(64), 512, nullptr, short_in.data(), kTiles * 64,
                        out.data());
  });
  emulator_test::expect_error("deadlock",
                              [&] { simt::launch(half_warp_multiplies, dim3(1), dim3(32), nullptr, out.data()); });
}
#endif

}  // namespace

int main() {
  check_right_kernels();
#if !defined(__CUDACC__)
  check_wrong_kernels();
#endif
  return emulator_test::finish("emulator_async");
}
