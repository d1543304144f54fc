#include "barriers.h"

#include <vector>

#include "clocks.h"
#include "sanitizer.h"

namespace simt {
namespace {

constexpr int kNamedBarriers = 16;  // 0 is __syncthreads

struct BlockBarrier {
  int threads = 0;
  int waiting = 0;
  int exited = 0;
  Where where;
};

struct NamedBarrier {
  int expected = 0;  // 0: nobody has arrived since it last completed
  int arrived = 0;
  std::vector<int> waiting;
  Knowledge knowledge;
};

BlockBarrier whole;
NamedBarrier named[kNamedBarriers];

// Returns whether the current thread completes the barrier.
bool arrive(int number, int threads, const Where& where) {
  if (number < 1 || number >= kNamedBarriers) fail("a named barrier's number is not between 1 and 15", where);
  if (threads < 32 || threads % 32 != 0 || threads > whole.threads)
    fail("a named barrier's count is not a multiple of 32, or exceeds the block", where);
  NamedBarrier& barrier = named[number];
  if (barrier.expected != 0 && barrier.expected != threads)
    fail("threads meet at one named barrier with different counts", where);
  barrier.expected = threads;
  publish(barrier.knowledge);
  publish_to(&barrier);
  if (++barrier.arrived < threads) return false;
  for (const int thread : barrier.waiting) make_ready(thread);
  barrier.waiting.clear();
  barrier.expected = barrier.arrived = 0;
  return true;
}

}  // namespace

void start_barriers(int threads) {
  whole = {threads, 0, 0, Where::current()};
  for (NamedBarrier& barrier : named) {
    barrier.expected = barrier.arrived = 0;
    barrier.waiting.clear();
  }
}

void leave_barriers() {
  ++whole.exited;
  if (whole.waiting > 0) fail("divergent barrier: a thread exits while others wait at __syncthreads", whole.where);
}

void block_barrier(const Where& where) {
  const EmulatorSection section;
  if (whole.exited > 0) fail("divergent barrier: __syncthreads after threads of the block have exited", where);
  if (whole.waiting > 0 && whole.where.line() != where.line())
    fail("divergent barrier: threads of a block wait at different __syncthreads", where);
  whole.where = where;
  publish_to(&whole);
  if (++whole.waiting == whole.threads) {
    whole.waiting = 0;
    start_interval();
    for (int thread = 0; thread < whole.threads; ++thread) make_ready(thread);
  }
  suspend("waits at __syncthreads", where);
  learn_from(&whole);
}

void named_barrier_sync(int number, int threads, const Where& where) {
  const EmulatorSection section;
  NamedBarrier& barrier = named[number & (kNamedBarriers - 1)];
  if (arrive(number, threads, where)) {
    give_way();
  } else {
    barrier.waiting.push_back(current_thread().linear);
    suspend("waits at a named barrier", where);
  }
  learn(barrier.knowledge);
  learn_from(&barrier);
}

void named_barrier_arrive(int number, int threads, const Where& where) {
  const EmulatorSection section;
  arrive(number, threads, where);
  give_way();
}

}  // namespace simt
