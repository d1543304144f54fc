// The emulator's own tests: programmatic dependent launch, and blocks that count themselves in.
#include <vector>

#include "emulator_test.h"

namespace {

using emulator_test::expect;
using simt::GlobalBuffer;

constexpr int kThreads = 64, kBlocks = 24, kElements = kThreads * kBlocks;

enum class Bug { kNone, kNoWait, kHalfWaits, kReadsEarly };

// Adds one to every element of `in`, which the launch in front writes; reads what another block wrote.
template <Bug kBug>
__global__ void add_one(const float* in, float* out) {
  simt::let_successor_start();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const float early = kBug == Bug::kReadsEarly ? in[kElements - 1 - i] : 0.0f;
  simt::prefetch_l2(in);
  if (kBug != Bug::kNoWait && (kBug != Bug::kHalfWaits || threadIdx.x < kThreads / 2)) simt::wait_for_predecessors();
  out[i] = (kBug == Bug::kReadsEarly ? early : in[kElements - 1 - i]) + 1.0f;
}

template <Bug kBug>
void launch_add(const GlobalBuffer<float>& in, const GlobalBuffer<float>& out) {
  simt::launch_dependent<add_one<kBug>>(dim3(kBlocks), dim3(kThreads), nullptr, in.data(), out.data());
}

// A block sums its elements to partials[block]; the last one adds those in order.
__global__ void sum_all(const float* in, float* partials, uint32_t* arrivals, float* out) {
  SIMT_SHARED(float, values, kThreads);
  SIMT_SHARED(uint32_t, arrived_before, 1);
  values[threadIdx.x] = in[blockIdx.x * kThreads + threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0.0f;
    for (int i = 0; i < kThreads; ++i) sum += values[i];
    partials[blockIdx.x] = sum;
  }
  simt::fence_writes();
  __syncthreads();
  if (threadIdx.x == 0) arrived_before[0] = simt::arrive(arrivals);
  __syncthreads();
  if (arrived_before[0] + 1 != kBlocks) return;
  simt::fence_reads();
  float sum = 0.0f;
  for (int block = 0; block < kBlocks; ++block) sum += partials[block];
  if (threadIdx.x == 0) out[0] = sum;
}

void check_chain() {
  constexpr int kLaunches = 20;  // the later ones may begin while the first still runs
  const GlobalBuffer<float> buffers[2] = {GlobalBuffer<float>(kElements), GlobalBuffer<float>(kElements)};
  simt::set_predecessor([&] {
    for (int i = 0; i < kElements; ++i) buffers[0][i] = static_cast<float>(i);
  });
  for (int launch = 0; launch < kLaunches; ++launch) {
    launch_add<Bug::kNone>(buffers[launch % 2], buffers[(launch + 1) % 2]);
  }
  for (int i = 0; i < kElements; ++i) {
    expect(buffers[kLaunches % 2][i] == static_cast<float>(i + kLaunches), "a chain of dependent launches");
  }
}

void check_ordinary_launch() {  // for which the kernel in front has ended
  const GlobalBuffer<float> in(kElements), out(kElements);
  simt::set_predecessor([&] {
    for (int i = 0; i < kElements; ++i) in[i] = 1.0f;
  });
  simt::launch(add_one<Bug::kReadsEarly>, dim3(kBlocks), dim3(kThreads), nullptr, in.data(), out.data());
  for (int i = 0; i < kElements; ++i) expect(out[i] == 2.0f, "an ordinary launch");
}

void check_last_block() {
  const GlobalBuffer<float> in(kElements), partials(kBlocks), out(1);
  const GlobalBuffer<uint32_t> arrivals(1);
  arrivals[0] = 0;
  for (int i = 0; i < kElements; ++i) in[i] = 1.0f;
  simt::launch(sum_all, dim3(kBlocks), dim3(kThreads), nullptr, in.data(), partials.data(), arrivals.data(),
               out.data());
  expect(out[0] == static_cast<float>(kElements), "the last block adds");
  expect(arrivals[0] == kBlocks, "every block arrives once");
}

#if !defined(__CUDACC__)
void check_wrong_kernels() {
  const GlobalBuffer<float> in(kElements), out(kElements);
  const char* const no_wait = "exits without having waited for the kernels in front";
  emulator_test::expect_error(no_wait, [&] { launch_add<Bug::kNoWait>(in, out); });
  emulator_test::expect_error(no_wait, [&] { launch_add<Bug::kHalfWaits>(in, out); });
#ifndef SIMT_THREAD_SANITIZER  // which reports the race itself
  simt::set_seed(0);
  simt::set_predecessor([&] {
    for (int i = 0; i < kElements; ++i) in[i] = 1.0f;
  });
  launch_add<Bug::kReadsEarly>(in, out);
  expect(out[0] != 2.0f, "what is read too early has not been written");
#endif
}
#endif

}  // namespace

int main() {
  for (int seed = 0; seed < emulator_test::kSeeds; ++seed) {
    simt::set_seed(seed);
    check_chain();
    check_ordinary_launch();
    check_last_block();
  }
#if !defined(__CUDACC__)
  check_wrong_kernels();
#endif
  return emulator_test::finish("emulator_grid");
}
