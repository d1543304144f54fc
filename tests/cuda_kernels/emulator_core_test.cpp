// The emulator's own tests: threads, barriers, warp collectives, shared and global memory.
#include "emulator_test.h"

namespace {

using emulator_test::expect;
using emulator_test::expect_error;

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

// Sums the threads' numbers; the barriers keep its atomic additions apart from other accesses.
template <bool kBefore, bool kAfter>
__global__ void add_atomically(float* out) {
  SIMT_SHARED(uint32_t, sum, 1);
  if (threadIdx.x == 0) sum[0] = 0;
  if (kBefore) __syncthreads();
  simt::atomic_add(sum + 0, threadIdx.x);
  if (kAfter) __syncthreads();
  out[threadIdx.x] = static_cast<float>(sum[0]);
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

// Every warp function once; a warp writes kWarpResults values a lane.
constexpr int kWarpResults = 8;
__global__ void warp_functions(int* out) {
  const int lane = threadIdx.x;
  const auto put = [&](int which, int value) { out[lane * kWarpResults + which] = value; };
  put(0, __shfl_sync(~0u, 3 * lane, 5));
  put(1, __shfl_up_sync(~0u, lane, 1));
  put(2, __shfl_down_sync(~0u, lane, 2));
  put(3, static_cast<int>(__ballot_sync(~0u, lane % 3 == 0)));
  put(4, __any_sync(~0u, lane == 31) + 2 * __any_sync(~0u, lane == 32));
  put(5, __all_sync(~0u, lane < 32) + 2 * __all_sync(~0u, lane < 31));
  put(6, static_cast<int>(__match_any_sync(~0u, lane / 8)));
  if (lane < 8) {
    put(7, static_cast<int>(__ballot_sync(0xffu, lane % 2)));
  } else {
    put(7, __popc(0xf0f0u) + 100 * __ffs(lane) + 10000 * __clz(lane));
  }
}

// The halves of a block synchronise separately, and then thread 0 waits for a signal of the last warp.
template <bool kWait>
__global__ void named_barriers(float* out) {
  SIMT_SHARED(float, tile, 128);
  SIMT_SHARED(float, last, 1);
  const int half = threadIdx.x / 64, in_half = threadIdx.x % 64, warp = threadIdx.x / 32;
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kWait) simt::named_barrier_sync(1 + half, 64);
  const float value = tile[half * 64 + 63 - in_half];
  if (threadIdx.x == 127) last[0] = 5.0f;
  if (warp == 3) simt::named_barrier_arrive(3, 64);
  float signal = 0.0f;
  if (warp == 0) {
    simt::named_barrier_sync(3, 64);
    signal = last[0];
  }
  out[threadIdx.x] = value + signal;
}

template <int kBarrier, int kThreads>
__global__ void wait_at_named_barrier() {
  simt::named_barrier_sync(kBarrier, kThreads);
}

// Threads exchange values through global memory, which only ThreadSanitizer watches.
template <bool kWait>
__global__ void reverse_in_global_memory(float* values) {
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kWait) __syncthreads();
  const float value = values[63 - threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = value;
}

__global__ void load_vector(const float* in, float* out, int offset) { simt::store16(out, simt::load16(in + offset)); }
__global__ void load_half_vector(const float* in, float* out, int offset) {
  simt::store8(out, simt::load8(in + offset));
}

__global__ void store_at(float* out, int64_t index) { out[index] = 1.0f; }

// Two-dimensional grids and blocks: thread and block numbers, x fastest.
__global__ void number_threads(int* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * 30 + thread] += block * 30 + thread + 1;
}

void check_right_kernels() {
  for (int seed = 0; seed < emulator_test::kSeeds; ++seed) {
    simt::set_seed(seed);
    const simt::GlobalBuffer<float> in(288), out(288), lanes(64);
    for (int i = 0; i < 288; ++i) in[i] = static_cast<float>(i);
    simt::launch(reverse, dim3(3), dim3(96), nullptr, in.data(), out.data());
    for (int i = 0; i < 288; ++i) expect(out[i] == in[i / 96 * 96 + 95 - i % 96], "reverse");
    simt::launch(reverse_in_warp<true>, dim3(1), dim3(32), nullptr, in.data(), out.data());
    for (int i = 0; i < 32; ++i) expect(out[i] == in[31 - i], "reverse_in_warp");
    simt::launch(sum_lanes, dim3(1), dim3(64), nullptr, lanes.data());
    for (int i = 0; i < 64; ++i) expect(lanes[i] == 496.0f, "warp_sum");
    simt::launch(add_atomically<true, true>, dim3(2), dim3(64), nullptr, lanes.data());
    for (int i = 0; i < 64; ++i) expect(lanes[i] == 2016.0f, "add_atomically");
    simt::launch(read_unwritten, dim3(1), dim3(32), nullptr, out.data());
    for (int i = 0; i < 32; ++i) expect(out[i] != out[i], "unwritten shared memory is NaN");
    simt::launch_shared(swap_through_regions<64>, dim3(2), dim3(64), 768, nullptr, lanes.data());
    for (int i = 0; i < 64; ++i) expect(lanes[i] == 163.0f, "swap_through_regions");
    simt::launch(reverse_in_global_memory<true>, dim3(1), dim3(64), nullptr, lanes.data());
    for (int i = 0; i < 64; ++i) expect(lanes[i] == static_cast<float>(63 - i), "reverse_in_global_memory");
    const simt::GlobalBuffer<int> results(32 * kWarpResults);
    simt::launch(warp_functions, dim3(1), dim3(32), nullptr, results.data());
    for (int lane = 0; lane < 32; ++lane) {
      const int last = lane < 8 ? 0xaa : 8 + 100 * (__builtin_ctz(lane) + 1) + 10000 * __builtin_clz(lane);
      const int want[] = {15,
                          std::max(lane - 1, 0),
                          lane + 2 < 32 ? lane + 2 : lane,
                          0x49249249,
                          1,
                          1,
                          static_cast<int>(0xffu << lane / 8 * 8),
                          last};
      for (int i = 0; i < kWarpResults; ++i) {
        expect(results[lane * kWarpResults + i] == want[i], "warp function " + std::to_string(i));
      }
    }
    simt::launch(named_barriers<true>, dim3(2), dim3(128), nullptr, in.data());
    for (int i = 0; i < 128; ++i) {
      expect(in[i] == static_cast<float>(i / 64 * 64 + 63 - i % 64 + (i < 32 ? 5 : 0)), "named_barriers");
    }
    const simt::GlobalBuffer<int> numbers(24 * 30);
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = 0;
    simt::launch(number_threads, dim3(2, 3, 4), dim3(5, 3, 2), nullptr, numbers.data());
    for (int i = 0; i < 24 * 30; ++i) expect(numbers[i] == i + 1, "every thread of every block runs once");
  }
}

void check_wrong_kernels() {
  const simt::GlobalBuffer<float> in(96), out(128);
  for (int i = 0; i < 96; ++i) in[i] = static_cast<float>(i);
  float* const o = out.data();
  const float* const a = in.data();
  const dim3 one(1), warp(32), two_warps(64), three_warps(96);
  expect_error("race: ", [&] { simt::launch(reverse_without_barrier, one, three_warps, nullptr, a, o); });
  expect_error("race: ", [&] { simt::launch(reverse_in_warp<false>, one, warp, nullptr, a, o); });
  expect_error("race: ", [&] { simt::launch(store_after_read, one, two_warps, nullptr, o); });
  expect_error("race: ", [&] { simt::launch(add_atomically<false, true>, one, two_warps, nullptr, o); });
  expect_error("race: ", [&] { simt::launch(add_atomically<true, false>, one, two_warps, nullptr, o); });
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
  expect_error("race: ", [&] { simt::launch(named_barriers<false>, one, dim3(128), nullptr, o); });
  expect_error("deadlock", [&] { simt::launch(wait_at_named_barrier<1, 96>, one, dim3(128), nullptr); });
  expect_error("not between 1 and 15", [&] { simt::launch(wait_at_named_barrier<0, 64>, one, two_warps, nullptr); });
  expect_error("not a multiple of 32", [&] { simt::launch(wait_at_named_barrier<1, 40>, one, two_warps, nullptr); });
  expect_error("deadlock", [&] { simt::launch(missing_lane_in_shuffle, one, warp, nullptr, o); });
  expect_error("not in the mask", [&] { simt::launch(lane_outside_mask, one, warp, nullptr, o); });
  expect_error("not a multiple of 16", [&] { simt::launch(load_vector, one, one, nullptr, a, o, 1); });
  expect_error("not a multiple of 8", [&] { simt::launch(load_half_vector, one, one, nullptr, a, o, 1); });
  expect_error("memory fault", [&] { simt::launch(store_at, one, one, nullptr, o, int64_t{128}); });
  expect_error("in front of a global buffer", [&] {
    simt::launch(store_at, one, one, nullptr, o, int64_t{-1});
    out.check();
  });
  expect_error("outside CUDA's limits", [&] { simt::launch(half_block_waits, one, dim3(1025), nullptr); });
  expect_error("outside CUDA's limits", [&] { simt::launch(half_block_waits, dim3(0), warp, nullptr); });
}

// To be called before any kernel runs here: ThreadSanitizer stops watching in children of a process with several
// fibers.
void check_thread_sanitizer() {
#ifdef SIMT_THREAD_SANITIZER
  const simt::GlobalBuffer<float> values(64);
  const auto races = [&](auto kernel) {
    const auto test = [&] { simt::launch(kernel, dim3(2), dim3(64), nullptr, values.data()); };
    return emulator_test::run_in_child(0, test).output.find("data race") != std::string::npos;
  };
  expect(races(reverse_in_global_memory<false>), "ThreadSanitizer sees a race in global memory");
  expect(!races(reverse_in_global_memory<true>), "ThreadSanitizer sees the order that barriers make");
#endif
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
  check_thread_sanitizer();
  check_right_kernels();
  check_wrong_kernels();
  check_conversions();
  return emulator_test::finish("emulator_core");
}
