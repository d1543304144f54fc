#include "clocks.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace simt {
namespace {

struct ThreadClock {
  uint32_t time = 1;
  uint32_t fenced_time = 0;
  Knowledge knowledge;
};

std::vector<ThreadClock> clocks;  // by linear index
int threads = 0;
int copiers = 0;
uint32_t interval = 0;  // never used again, so that nothing need be forgotten between blocks
uint64_t block = 0;

ThreadClock& own() { return clocks[current_thread().linear]; }

}  // namespace

void Knowledge::enter_interval() {
  if (interval_ == interval) return;
  interval_ = interval;
  std::fill_n(threads_, threads, 0u);
}

void Knowledge::merge(const Knowledge& other) {
  enter_interval();
  if (other.interval_ == interval) {
    for (int i = 0; i < threads; ++i) threads_[i] = std::max(threads_[i], other.threads_[i]);
  }
  merge_copiers(other);
}

void Knowledge::merge_copiers(const Knowledge& other) {
  for (int i = 0; i < copiers; ++i) copiers_[i] = std::max(copiers_[i], other.copiers_[i]);
}

void Knowledge::forget_copiers() { std::fill_n(copiers_, kMaxCopiers, 0u); }

bool Knowledge::covers(const Instant& instant) const {
  if (instant.actor >= kMaxThreads) return copiers_[instant.actor - kMaxThreads] >= instant.time;
  return instant.interval < interval || (interval_ == interval && threads_[instant.actor] >= instant.time);
}

void Knowledge::set_thread(int thread, uint32_t time) {
  enter_interval();
  threads_[thread] = time;
}

Instant current_instant() { return {current_thread().linear, interval, own().time}; }

bool has_happened(const Instant& instant) {
  return instant.actor == Instant::kNobody || instant.actor == current_thread().linear ||
         own().knowledge.covers(instant);
}

void publish(Knowledge& into) {
  ThreadClock& clock = own();
  clock.knowledge.set_thread(current_thread().linear, clock.time);
  into.merge(clock.knowledge);
  ++clock.time;
}

void learn(const Knowledge& from) { own().knowledge.merge(from); }

void fence_async_proxy() {
  ThreadClock& clock = own();
  clock.fenced_time = clock.time++;
}

bool is_fenced(const Instant& write) {
  return write.actor < 0 || write.actor >= kMaxThreads || clocks[write.actor].fenced_time >= write.time;
}

void synchronise_lanes(int first, uint32_t mask) {
  Knowledge met;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int thread = first + std::countr_zero(rest);
    met.merge(clocks[thread].knowledge);
    met.set_thread(thread, clocks[thread].time++);
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    clocks[first + std::countr_zero(rest)].knowledge.merge(met);
  }
}

void start_interval() {
  ++interval;
  if (copiers == 0) return;
  static Knowledge met;
  met.forget_copiers();
  for (int i = 0; i < threads; ++i) met.merge_copiers(clocks[i].knowledge);
  for (int i = 0; i < threads; ++i) clocks[i].knowledge.merge_copiers(met);
}

void start_clocks(int block_threads) {
  clocks.resize(kMaxThreads);
  threads = block_threads;
  ++interval;
  ++block;
  if (copiers == 0) return;
  copiers = 0;
  for (ThreadClock& clock : clocks) clock.knowledge.forget_copiers();
}

int new_copier(const Where& where) {
  if (copiers == kMaxCopiers) fail("more mbarriers in a block than the emulator has", where);
  return copiers++;
}

uint64_t current_block() { return block; }

}  // namespace simt
