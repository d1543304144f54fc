// The emulator's programmatic dependent launch. A test says what the kernel in front of the next one does; in a
// dependent launch that happens as late as possible, when a thread first waits for it, and a thread that ends without
// having waited is an error.
#pragma once
#include <functional>

#include "runtime.h"

namespace simt {

// What a kernel in front of the next launch has yet to do.
void set_predecessor(std::function<void()> work);

void wait_for_predecessors();

// While one exists, launches are dependent.
class DependentLaunch {
 public:
  DependentLaunch();
  DependentLaunch(const DependentLaunch&) = delete;
  DependentLaunch& operator=(const DependentLaunch&) = delete;
  ~DependentLaunch();
};

// Called by the scheduler.
void start_waits(int threads);        // a new block begins
void check_wait_of_exiting_thread();  // the current thread exits

}  // namespace simt
