#include "predecessor.h"

#include <utility>
#include <vector>

#include "sanitizer.h"

namespace simt {
namespace {

std::function<void()> unfinished;
bool dependent = false;
std::vector<char> waited;  // by thread
char finished = 0;         // orders what the predecessor did before what follows a wait, for ThreadSanitizer

void finish_predecessor() {
  const auto work = std::exchange(unfinished, nullptr);
  if (work == nullptr) return;
  work();
  publish_to(&finished);
}

}  // namespace

void set_predecessor(std::function<void()> work) { unfinished = std::move(work); }

void wait_for_predecessors() {
  finish_predecessor();
  learn_from(&finished);
  const EmulatorSection section;
  waited[current_thread().linear] = true;
}

DependentLaunch::DependentLaunch() { dependent = true; }
DependentLaunch::~DependentLaunch() { dependent = false; }

void start_waits(int threads) {
  if (!dependent) finish_predecessor();
  waited.assign(threads, false);
}

void check_wait_of_exiting_thread() {
  const EmulatorSection section;
  if (dependent && !waited[current_thread().linear]) {
    fail("a thread of a dependent launch exits without having waited for the kernels in front", Where::current());
  }
}

}  // namespace simt
