// The emulator's own tests: small kernels, right and wrong. A wrong one runs in a child process, which must end with
// the emulator's error code and the expected words.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>

#include "simt/global_buffer.h"
#include "simt/simt.h"

namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("MISMATCH: %s\n", what.c_str());
  ++failures;
}

// Runs `test` in a child and expects the error `words`, under several schedules.
void expect_error(const char* words, const std::function<void()>& test) {
  for (int seed = 0; seed < 8; ++seed) {
    int ends[2];
    if (pipe(ends) != 0) return expect(false, "pipe failed");
    const pid_t child = fork();
    if (child == 0) {
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      simt::set_seed(seed);
      test();
      _exit(0);
    }
    close(ends[1]);
    std::string output;
    char chunk[1024];
    for (ssize_t n = 0; (n = read(ends[0], chunk, sizeof(chunk))) > 0;) output.append(chunk, n);
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    const bool stopped = WIFEXITED(status) && WEXITSTATUS(status) == simt::kErrorExit;
    expect(stopped && output.find(words) != std::string::npos,
           std::string("expected the error '") + words + "' with seed " + std::to_string(seed) + ", got: " + output);
  }
}

// Blocks of 96 threads reverse their part of `in` through shared memory.
__global__ void reverse(const float* in, float* out) {
  SIMT_SHARED(float, tile, 96);
  const int first = blockIdx.x * 96;
  tile[threadIdx.x] = in[first + threadIdx.x];
  __syncthreads();
  out[first + threadIdx.x] = tile[95 - threadIdx.x];
}

__global__ void reverse_without_barrier(const float* in, float* out) {
  SIMT_SHARED(float, tile, 96);
  tile[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = tile[95 - threadIdx.x];
}

// Right with __syncwarp, wrong without; kWait chooses.
template <bool kWait>
__global__ void reverse_in_warp(const float* in, float* out) {
  SIMT_SHARED(float, tile, 32);
  tile[threadIdx.x] = in[threadIdx.x];
  if (kWait) __syncwarp();
  out[threadIdx.x] = tile[31 - threadIdx.x];
}

// The second store overtakes readers of the first.
__global__ void store_after_read(float* out) {
  SIMT_SHARED(float, value, 1);
  if (threadIdx.x == 0) value[0] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = value[0];
  if (threadIdx.x == 0) value[0] = 2.0f;
}

__global__ void read_unwritten(float* out) {
  SIMT_SHARED(float, tile, 32);
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void index_past_end(float* out) {
  SIMT_SHARED(float, tile, 32);
  tile[threadIdx.x + 1] = 0.0f;
  out[threadIdx.x] = 0.0f;
}

// Two regions of dynamic shared memory; kFirstCount of the 64 elements that the first needs.
template <int kFirstCount>
__global__ void swap_through_regions(float* out) {
  SIMT_DYNAMIC_SHARED(memory);
  const auto first = simt::shared_region<float>(memory, 0, kFirstCount, "first");
  const auto second = simt::shared_region<double>(memory, 256, 64, "second");
  first[threadIdx.x] = static_cast<float>(threadIdx.x);
  second[threadIdx.x] = 100.0 + threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = (first + 1)[62 - static_cast<int>(threadIdx.x)] + static_cast<float>(second[threadIdx.x]);
}

__global__ void half_block_waits() {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void two_different_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lanes_in_different_shuffles(float* out) {
  float value = 1.0f;
  if (threadIdx.x < 16) {
    value += __shfl_xor_sync(~0u, value, 1);
  } else {
    value += __shfl_xor_sync(~0u, value, 2);
  }
  out[threadIdx.x] = value;
}

__global__ void missing_lane_in_shuffle(float* out) {
  if (threadIdx.x < 31) out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

__global__ void lane_outside_mask(float* out) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1); }

__global__ void sum_lanes(float* out) { out[threadIdx.x] = simt::warp_sum(static_cast<float>(threadIdx.x % 32)); }

__global__ void load_vector(const float* in, float* out, int offset) { simt::store16(out, simt::load16(in + offset)); }

__global__ void store_at(float* out, int64_t index) { out[index] = 1.0f; }

// Two-dimensional grids and blocks: thread and block numbers, x fastest.
__global__ void number_threads(int* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * 30 + thread] += block * 30 + thread + 1;
}

void check_right_kernels() {
  for (int seed = 0; seed < 8; ++seed) {
    simt::set_seed(seed);
    const simt::GlobalBuffer<float> in(288), out(288), lanes(64);
    for (int i = 0; i < 288; ++i) in[i] = static_cast<float>(i);
    simt::launch(reverse, dim3(3), dim3(96), nullptr, in.data(), out.data());
    for (int i = 0; i < 288; ++i) expect(out[i] == in[i / 96 * 96 + 95 - i % 96], "reverse");
    simt::launch(reverse_in_warp<true>, dim3(1), dim3(32), nullptr, in.data(), out.data());
    for (int i = 0; i < 32; ++i) expect(out[i] == in[31 - i], "reverse_in_warp");
    simt::launch(sum_lanes, dim3(1), dim3(64), nullptr, lanes.data());
    for (int i = 0; i < 64; ++i) expect(lanes[i] == 496.0f, "warp_sum");
    simt::launch(read_unwritten, dim3(1), dim3(32), nullptr, out.data());
    for (int i = 0; i < 32; ++i) expect(out[i] != out[i], "unwritten shared memory is NaN");
    simt::launch_shared(swap_through_regions<64>, dim3(2), dim3(64), 768, nullptr, lanes.data());
    for (int i = 0; i < 64; ++i) expect(lanes[i] == 163.0f, "swap_through_regions");
    const simt::GlobalBuffer<int> numbers(24 * 30);
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = 0;
    simt::launch(number_threads, dim3(2, 3, 4), dim3(5, 3, 2), nullptr, numbers.data());
    for (int i = 0; i < 24 * 30; ++i) expect(numbers[i] == i + 1, "every thread of every block runs once");
  }
}

void check_wrong_kernels() {
  const simt::GlobalBuffer<float> in(96), out(96);
  for (int i = 0; i < 96; ++i) in[i] = static_cast<float>(i);
  float* const o = out.data();
  const float* const a = in.data();
  const dim3 one(1), warp(32), two_warps(64), three_warps(96);
  expect_error("race: ", [&] { simt::launch(reverse_without_barrier, one, three_warps, nullptr, a, o); });
  expect_error("race: ", [&] { simt::launch(reverse_in_warp<false>, one, warp, nullptr, a, o); });
  expect_error("race: ", [&] { simt::launch(store_after_read, one, two_warps, nullptr, o); });
  expect_error("index 32 is outside the shared array tile of 32",
               [&] { simt::launch(index_past_end, one, warp, nullptr, o); });
  const auto regions = [&](auto kernel, size_t bytes) {
    simt::launch_shared(kernel, one, two_warps, bytes, nullptr, o);
  };
  expect_error("index 63 is outside the shared array first of 63", [&] { regions(swap_through_regions<63>, 768); });
  expect_error("exceeds the launch's dynamic shared memory", [&] { regions(swap_through_regions<64>, 767); });
  expect_error("overlap", [&] { regions(swap_through_regions<65>, 768); });
  expect_error("more dynamic shared memory than", [&] { regions(swap_through_regions<64>, 232449); });
  expect_error("divergent barrier", [&] { simt::launch(half_block_waits, one, two_warps, nullptr); });
  expect_error("divergent barrier", [&] { simt::launch(two_different_barriers, one, two_warps, nullptr); });
  expect_error("divergent collective", [&] { simt::launch(lanes_in_different_shuffles, one, warp, nullptr, o); });
  expect_error("deadlock", [&] { simt::launch(missing_lane_in_shuffle, one, warp, nullptr, o); });
  expect_error("not in the mask", [&] { simt::launch(lane_outside_mask, one, warp, nullptr, o); });
  expect_error("not a multiple of 16", [&] { simt::launch(load_vector, one, one, nullptr, a, o, 1); });
  expect_error("memory fault", [&] { simt::launch(store_at, one, one, nullptr, o, int64_t{96}); });
  expect_error("in front of a global buffer", [&] {
    simt::launch(store_at, one, one, nullptr, o, int64_t{-1});
    out.check();
  });
  expect_error("outside CUDA's limits", [&] { simt::launch(half_block_waits, one, dim3(1025), nullptr); });
  expect_error("outside CUDA's limits", [&] { simt::launch(half_block_waits, dim3(0), warp, nullptr); });
}

void check_conversions() {
  expect(simt::from_float<simt::bf16>(1.00390625f).bits == 0x3f80, "bf16: a tie rounds to even, down");
  expect(simt::from_float<simt::bf16>(1.01171875f).bits == 0x3f82, "bf16: a tie rounds to even, up");
  expect(simt::from_float<simt::fp16>(65536.0f).bits == 0x7c00, "fp16: overflow is infinity");
  expect(simt::to_float(simt::fp16{0x0001}) == 0x1p-24f, "fp16: the smallest subnormal");
  const float nan = __uint_as_float(0x7f800001u);
  expect(std::isnan(simt::to_float(simt::from_float<simt::bf16>(nan))), "bf16: NaN stays NaN");
  float values[8];
  simt::unpack_vector<simt::bf16>(make_uint4(0x40003f80u, 0, 0, 0xc0400000u), values);
  expect(values[0] == 1.0f && values[1] == 2.0f && values[7] == -3.0f,
         "unpack_vector: the first element is the low half");
  expect(simt::pack_vector<simt::bf16>(values).w == 0xc0400000u, "pack_vector is its inverse");
}

}  // namespace

int main() {
  check_right_kernels();
  check_wrong_kernels();
  check_conversions();
  std::printf("emulator: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
