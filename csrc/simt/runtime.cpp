// The emulator's scheduler: fibers for the threads of a block, blocks one after the other.
#include "runtime.h"

#include <unistd.h>

#include <bit>
#include <cstdio>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "async_copies.h"
#include "barriers.h"
#include "clocks.h"
#include "fiber.h"
#include "mbarriers.h"
#include "predecessor.h"
#include "sanitizer.h"
#include "shared_memory.h"
#include "wgmma.h"

namespace simt {
namespace {

constexpr int kMaxWarps = kMaxThreads / 32;
constexpr unsigned kMaxGridYZ = 65535;
constexpr unsigned kMaxBlockZ = 64;
constexpr size_t kMaxSharedBytes = 227 << 10;  // of a block on sm_90; sm_80 has 163 KB

constexpr const char* kReady = nullptr;
constexpr const char* kExited = "has exited";

struct EmulatedThread : Thread {
  std::unique_ptr<Fiber> fiber;
  const char* state = kExited;
  Where where;  // of what it waits for
};

class Scheduler {
 public:
  void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);
  [[noreturn]] void thread_main();
  void suspend(const char* state, const Where& where);
  void make_ready(int thread);
  void give_way();

  uint64_t seed = 0;
  const EmulatedThread* current = nullptr;
  uint3 block_index{};
  dim3 block_size, grid_size;

 private:
  void check_launch(dim3 grid, dim3 block, size_t shared_bytes) const;
  void run_block();
  void switch_to(EmulatedThread& next);
  void run_others();
  EmulatedThread* pick();
  void shuffle_warps();
  uint64_t random();
  void print_threads() const;

  std::vector<EmulatedThread> pool_;  // kept between launches: index i runs thread i of every block
  EmulatedThread caller_;
  const std::function<void()>* body_ = nullptr;
  int threads_ = 0;
  int warps_ = 0;
  int alive_ = 0;
  uint32_t ready_[kMaxWarps] = {};  // lanes that can run, per warp
  int order_[kMaxWarps] = {};
  uint64_t random_state_ = 1;
  char block_start_ = 0, block_end_ = 0;  // order between blocks, for ThreadSanitizer
};

Scheduler scheduler;

void fiber_entry() {
  Fiber::started();
  scheduler.thread_main();
}

uint64_t Scheduler::random() {  // xorshift64
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return random_state_ >> 11;
}

void Scheduler::shuffle_warps() {
  for (int i = warps_ - 1; i > 0; --i) std::swap(order_[i], order_[random() % (i + 1)]);
}

void Scheduler::make_ready(int thread) {
  EmulatedThread& woken = pool_[thread];
  woken.state = kReady;
  ready_[woken.warp] |= 1u << woken.lane;
}

EmulatedThread* Scheduler::pick() {
  constexpr int kCopyOdds = 16, kShuffleOdds = 512;
  const bool run_ahead = seed % 2 == 1;
  if (seed != 0 && !run_ahead) {
    std::swap(order_[0], order_[random() % warps_]);
    if (random() % kCopyOdds == 0) finish_bulk_copy(random());
  }
  if (run_ahead && random() % kShuffleOdds == 0) shuffle_warps();
  do {
    for (int i = 0; i < warps_; ++i) {
      const int warp = order_[i];
      if (ready_[warp] == 0) continue;
      const int first = seed != 0 ? static_cast<int>(random() % 32) : 0;
      const int lane = (std::countr_zero(std::rotr(ready_[warp], first)) + first) % 32;
      ready_[warp] &= ~(1u << lane);
      return &pool_[warp * 32 + lane];
    }
  } while (finish_bulk_copy(random()));  // as late as possible: when every thread waits
  return nullptr;
}

void Scheduler::switch_to(EmulatedThread& next) {
  const EmulatedThread& from = *current;
  if (&next == &from) return;
  current = &next;
  next.fiber->resume(*from.fiber);
}

void Scheduler::print_threads() const {
  for (int i = 0; i < threads_; ++i) {
    const EmulatedThread& thread = pool_[i];
    const bool as_before = i % 32 != 0 && thread.state == pool_[i - 1].state &&
                           (thread.state == kExited || thread.where.line() == pool_[i - 1].where.line());
    if (as_before) continue;
    std::fprintf(stderr, "  from thread %d on: %s", i, thread.state == kReady ? "can run" : thread.state);
    if (thread.state != kExited) std::fprintf(stderr, ", %s:%u", thread.where.file_name(), thread.where.line());
    std::fputc('\n', stderr);
  }
}

// The current thread cannot go on: runs the others until it can.
void Scheduler::run_others() {
  EmulatedThread* next = pick();
  if (next == nullptr) {
    print_threads();
    fail("deadlock: the threads diverged before a barrier or warp collective", current->where);
  }
  switch_to(*next);
}

void Scheduler::suspend(const char* state, const Where& where) {
  EmulatedThread& self = pool_[current->linear];
  // A barrier that the thread itself completes has made it ready already.
  const bool ready = ready_[self.warp] >> self.lane & 1u;
  if (!ready) self.state = state;
  self.where = where;
  run_others();
}

void Scheduler::give_way() {
  if (seed == 0) return;
  shuffle_warps();
  make_ready(current->linear);
  run_others();
}

void Scheduler::thread_main() {
  for (;;) {
    learn_from(&block_start_);
    (*body_)();
    publish_to(&block_end_);
    EmulatedThread& self = pool_[current->linear];
    leave_barriers();
    check_copies_of_exiting_thread();
    check_wgmma_of_exiting_thread();
    check_wait_of_exiting_thread();
    self.state = kExited;
    if (--alive_ == 0) {
      switch_to(caller_);
    } else {
      run_others();
    }
  }
}

void Scheduler::run_block() {
  start_clocks(threads_);
  start_barriers(threads_);
  start_copies(threads_);
  start_mbarriers();
  start_wgmma();
  start_waits(threads_);
  alive_ = threads_;
  for (int warp = 0; warp < warps_; ++warp) {
    order_[warp] = warp;
    ready_[warp] = 0;
  }
  if (seed != 0) shuffle_warps();
  for (int i = 0; i < threads_; ++i) {
    EmulatedThread& thread = pool_[i];
    const auto index = static_cast<unsigned>(i);
    thread.index = {index % block_size.x, index / block_size.x % block_size.y, index / block_size.x / block_size.y};
    thread.linear = i;
    thread.lane = i % 32;
    thread.warp = i / 32;
    make_ready(i);
  }
  publish_to(&block_start_);
  switch_to(*pick());
  learn_from(&block_end_);
  check_bulk_copies_of_finished_block();
}

void Scheduler::check_launch(dim3 grid, dim3 block, size_t shared_bytes) const {
  if (current != &caller_) fail("a kernel was launched from inside a kernel", Where::current());
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const bool valid = threads > 0 && threads <= kMaxThreads && block.z <= kMaxBlockZ && blocks > 0 &&
                     grid.x <= INT32_MAX && grid.y <= kMaxGridYZ && grid.z <= kMaxGridYZ;
  if (!valid) fail("the grid or block size is outside CUDA's limits", Where::current());
  if (shared_bytes > kMaxSharedBytes) fail("more dynamic shared memory than any GPU has", Where::current());
}

void Scheduler::run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  if (current == nullptr) {
    caller_.fiber = std::make_unique<Fiber>();
    caller_.lane = caller_.warp = caller_.linear = -1;
    current = &caller_;
    pool_.resize(kMaxThreads);
  }
  check_launch(grid, block, shared_bytes);
  start_dynamic_shared(shared_bytes);
  threads_ = static_cast<int>(block.x * block.y * block.z);
  warps_ = (threads_ + 31) / 32;
  block_size = block;
  grid_size = grid;
  body_ = &body;
  random_state_ = (seed + 1) * 0x9E3779B97F4A7C15ull;
  for (int i = 0; i < threads_; ++i) {
    if (pool_[i].fiber == nullptr) pool_[i].fiber = std::make_unique<Fiber>(fiber_entry);
  }

  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (seed != 0) {
    for (uint64_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
  }
  for (const uint64_t number : order) {
    block_index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                   static_cast<unsigned>(number / grid.x / grid.y)};
    run_block();
  }
}

}  // namespace

const Thread& current_thread() { return *scheduler.current; }
const uint3& block_index() { return scheduler.block_index; }
const dim3& block_size() { return scheduler.block_size; }
const dim3& grid_size() { return scheduler.grid_size; }
void set_seed(uint64_t seed) { scheduler.seed = seed; }
void suspend(const char* state, const Where& where) { scheduler.suspend(state, where); }
void make_ready(int thread) { scheduler.make_ready(thread); }
void give_way() { scheduler.give_way(); }

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  scheduler.run(grid, block, shared_bytes, body);
}

void fail(const char* what, const Where& where) {
  std::fprintf(stderr, "SIMT ERROR: %s\n  at %s:%u", what, where.file_name(), where.line());
  if (scheduler.current != nullptr) {
    const uint3& block = scheduler.block_index;
    std::fprintf(stderr, ", block (%u, %u, %u), warp %d, lane %d, seed %llu", block.x, block.y, block.z,
                 scheduler.current->warp, scheduler.current->lane, static_cast<unsigned long long>(scheduler.seed));
  }
  std::fputc('\n', stderr);
  std::fflush(nullptr);
  _exit(kErrorExit);
}

}  // namespace simt
