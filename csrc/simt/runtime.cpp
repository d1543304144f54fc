// The emulator's scheduler: fibers for the threads of a block, barriers, warp collectives, blocks one after the other.
#include "runtime.h"

#include <unistd.h>

#include <bit>
#include <cstdio>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"

namespace simt {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / 32;
constexpr unsigned kMaxGridYZ = 65535;
constexpr unsigned kMaxBlockZ = 64;
constexpr size_t kMaxSharedBytes = 227 << 10;  // of a block on sm_90; sm_80 has 163 KB

enum class State { kReady, kInBarrier, kInCollective, kExited };

struct EmulatedThread : Thread {
  std::unique_ptr<Fiber> fiber;
  State state = State::kExited;
  Where where;  // of the barrier or collective it waits in
};

// A collective whose lanes are arriving. Masks that are in use at the same time in a warp have no lane in common, so
// the lowest lane of the mask identifies it.
struct Meeting {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  const Collective* collective = nullptr;
  Where where;
  void* arguments[32] = {};
};

class Scheduler {
 public:
  void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);
  void barrier(const Where& where);
  void collective(uint32_t mask, const Collective& operation, void* argument, const Where& where);
  [[noreturn]] void thread_main();

  uint64_t seed = 0;
  const EmulatedThread* current = nullptr;
  uint3 block_index{};
  dim3 block_size, grid_size;
  Clock clock() const;

 private:
  void start_block();
  void run_block();
  void switch_to(EmulatedThread& next);
  void wait();
  EmulatedThread* pick();
  void make_ready(EmulatedThread& thread);
  void shuffle_warps();
  uint64_t random();
  void print_threads() const;

  std::vector<EmulatedThread> pool_;  // kept between launches: index i runs thread i of every block
  EmulatedThread caller_;
  const std::function<void()>* body_ = nullptr;
  int threads_ = 0;
  int warps_ = 0;
  int alive_ = 0;
  int in_barrier_ = 0;
  Where barrier_where_;
  uint64_t block_number_ = 0;
  uint32_t block_barriers_ = 0;
  uint32_t warp_barriers_[kMaxWarps] = {};
  uint32_t ready_[kMaxWarps] = {};  // lanes that can run, per warp
  int order_[kMaxWarps] = {};
  Meeting meetings_[kMaxWarps][32];
  uint64_t random_state_ = 1;
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

void Scheduler::make_ready(EmulatedThread& thread) {
  thread.state = State::kReady;
  ready_[thread.warp] |= 1u << thread.lane;
}

EmulatedThread* Scheduler::pick() {
  const bool run_ahead = seed % 2 == 1;
  if (seed != 0 && !run_ahead) std::swap(order_[0], order_[random() % warps_]);
  if (run_ahead && random() % 512 == 0) shuffle_warps();
  for (int i = 0; i < warps_; ++i) {
    const int warp = order_[i];
    if (ready_[warp] == 0) continue;
    const int first = seed != 0 ? static_cast<int>(random() % 32) : 0;
    const int lane = (std::countr_zero(std::rotr(ready_[warp], first)) + first) % 32;
    ready_[warp] &= ~(1u << lane);
    return &pool_[warp * 32 + lane];
  }
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
                           (thread.state == State::kExited || thread.where.line() == pool_[i - 1].where.line());
    if (as_before) continue;
    const char* state = thread.state == State::kExited      ? "has exited"
                        : thread.state == State::kInBarrier ? "waits at __syncthreads"
                                                            : "waits in a warp collective";
    std::fprintf(stderr, "  from thread %d on: %s", i, state);
    if (thread.state != State::kExited) std::fprintf(stderr, ", %s:%u", thread.where.file_name(), thread.where.line());
    std::fputc('\n', stderr);
  }
}

// The current thread cannot go on: runs the others until it can.
void Scheduler::wait() {
  EmulatedThread* next = pick();
  if (next == nullptr) {
    print_threads();
    fail("deadlock: the threads diverged before a barrier or warp collective", current->where);
  }
  switch_to(*next);
}

void Scheduler::barrier(const Where& where) {
  EmulatedThread& self = pool_[current->linear];
  self.where = where;
  if (alive_ < threads_) fail("divergent barrier: __syncthreads after threads of the block have exited", where);
  if (in_barrier_ > 0 && barrier_where_.line() != where.line()) {
    print_threads();
    fail("divergent barrier: threads of a block wait at different __syncthreads", where);
  }
  self.state = State::kInBarrier;
  barrier_where_ = where;
  if (++in_barrier_ == threads_) {
    in_barrier_ = 0;
    ++block_barriers_;
    for (int i = 0; i < threads_; ++i) make_ready(pool_[i]);
    if (seed != 0) shuffle_warps();
  }
  wait();
}

void Scheduler::collective(uint32_t mask, const Collective& operation, void* argument, const Where& where) {
  EmulatedThread& self = pool_[current->linear];
  self.where = where;
  if (!(mask >> self.lane & 1u)) fail("the calling lane is not in the mask of its warp collective", where);
  Meeting& meeting = meetings_[self.warp][std::countr_zero(mask)];
  if (meeting.arrived == 0) {
    meeting.mask = mask;
    meeting.collective = &operation;
    meeting.where = where;
  } else if (meeting.mask != mask || meeting.collective != &operation || meeting.where.line() != where.line()) {
    std::fprintf(stderr, "  %s at line %u meets %s at line %u\n", operation.name, where.line(),
                 meeting.collective->name, meeting.where.line());
    fail("divergent collective: lanes of a warp meet in different collectives", where);
  }
  meeting.arguments[self.lane] = argument;
  meeting.arrived |= 1u << self.lane;
  self.state = State::kInCollective;
  if (meeting.arrived == mask) {
    operation.execute(mask, meeting.arguments);
    meeting.arrived = 0;
    if (operation.orders_memory) ++warp_barriers_[self.warp];
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) make_ready(pool_[self.warp * 32 + std::countr_zero(rest)]);
  }
  wait();
}

void Scheduler::thread_main() {
  for (;;) {
    (*body_)();
    EmulatedThread& self = pool_[current->linear];
    self.state = State::kExited;
    --alive_;
    if (in_barrier_ > 0) fail("divergent barrier: a thread exits while others wait at __syncthreads", barrier_where_);
    if (alive_ == 0) {
      switch_to(caller_);
    } else {
      wait();
    }
  }
}

void Scheduler::start_block() {
  ++block_number_;
  block_barriers_ = 0;
  in_barrier_ = 0;
  alive_ = threads_;
  for (int warp = 0; warp < warps_; ++warp) {
    order_[warp] = warp;
    ready_[warp] = 0;
    warp_barriers_[warp] = 0;
  }
  if (seed != 0) shuffle_warps();
  for (int i = 0; i < threads_; ++i) {
    EmulatedThread& thread = pool_[i];
    const auto index = static_cast<unsigned>(i);
    thread.index = {index % block_size.x, index / block_size.x % block_size.y, index / block_size.x / block_size.y};
    thread.linear = i;
    thread.lane = i % 32;
    thread.warp = i / 32;
    make_ready(thread);
  }
}

void Scheduler::run_block() {
  start_block();
  switch_to(*pick());
}

void Scheduler::run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  if (current == nullptr) {
    caller_.fiber = std::make_unique<Fiber>();
    caller_.lane = caller_.warp = caller_.linear = -1;
    current = &caller_;
    pool_.resize(kMaxThreads);
  }
  if (current != &caller_) fail("a kernel was launched from inside a kernel", Where::current());
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const bool valid = threads > 0 && threads <= kMaxThreads && block.z <= kMaxBlockZ && blocks > 0 &&
                     grid.x <= INT32_MAX && grid.y <= kMaxGridYZ && grid.z <= kMaxGridYZ;
  if (!valid) fail("the grid or block size is outside CUDA's limits", Where::current());
  if (shared_bytes > kMaxSharedBytes) fail("more dynamic shared memory than any GPU has", Where::current());
  start_dynamic_shared(shared_bytes);
  threads_ = static_cast<int>(threads);
  warps_ = (threads_ + 31) / 32;
  block_size = block;
  grid_size = grid;
  body_ = &body;
  random_state_ = (seed + 1) * 0x9E3779B97F4A7C15ull;
  for (int i = 0; i < threads_; ++i) {
    if (pool_[i].fiber == nullptr) pool_[i].fiber = std::make_unique<Fiber>(fiber_entry);
  }

  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (seed != 0) {
    for (uint64_t i = blocks - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
  }
  for (const uint64_t number : order) {
    block_index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                   static_cast<unsigned>(number / grid.x / grid.y)};
    run_block();
  }
}

Clock Scheduler::clock() const { return {block_number_, block_barriers_, warp_barriers_[current->warp]}; }

}  // namespace

const Thread& current_thread() { return *scheduler.current; }
const uint3& block_index() { return scheduler.block_index; }
const dim3& block_size() { return scheduler.block_size; }
const dim3& grid_size() { return scheduler.grid_size; }
Clock current_clock() { return scheduler.clock(); }
void set_seed(uint64_t seed) { scheduler.seed = seed; }
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  scheduler.run(grid, block, shared_bytes, body);
}
void block_barrier(const Where& where) { scheduler.barrier(where); }
void warp_collective(uint32_t mask, const Collective& collective, void* argument, const Where& where) {
  scheduler.collective(mask, collective, argument, where);
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
