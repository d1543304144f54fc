// What happened before what among the threads of the running block: vector clocks.
//
// Each thread has a time, which grows whenever it publishes what it did, and knows for every other thread up to which
// time it has been synchronised with it. A barrier of the whole block starts a new interval: everything in earlier
// intervals has happened, and the times need not be merged. The copies that an mbarrier counts are an actor of their
// own, whose time is the number of the barrier's phase: a block barrier says nothing about them.
#pragma once
#include "runtime.h"

namespace simt {

inline constexpr int kMaxCopiers = 64;  // mbarriers of a block

// An instant in the life of an actor.
struct Instant {
  static constexpr int kNobody = -1;
  int actor = kNobody;  // a thread's linear index, or kMaxThreads + the number of an mbarrier
  uint32_t interval = 0;
  uint32_t time = 0;
};

// Up to which time each actor is known. A synchronising object has one: threads publish into it and learn from it.
class Knowledge {
 public:
  void merge(const Knowledge& other);
  void merge_copiers(const Knowledge& other);
  void forget_copiers();
  bool covers(const Instant& instant) const;
  void set_thread(int thread, uint32_t time);
  void set_copier(int copier, uint32_t time) { copiers_[copier] = time; }

 private:
  void enter_interval();

  uint32_t interval_ = 0;  // in which threads_ was last valid
  uint32_t threads_[kMaxThreads] = {};
  uint32_t copiers_[kMaxCopiers] = {};
};

// Of the current thread.
Instant current_instant();
bool has_happened(const Instant& instant);
void publish(Knowledge& into);
void learn(const Knowledge& from);

// What the current thread wrote so far becomes visible to asynchronous units (the async proxy).
void fence_async_proxy();
bool is_fenced(const Instant& write);

// The lanes of `mask` in the warp that starts at thread `first` learn all that any of them knows.
void synchronise_lanes(int first, uint32_t mask);
// All threads of the block have met.
void start_interval();
// A new block of `threads` threads; blocks are numbered from 1 over all launches.
void start_clocks(int threads);
uint64_t current_block();

// A number for a new mbarrier of the block, less than kMaxCopiers.
int new_copier(const Where& where);

}  // namespace simt
