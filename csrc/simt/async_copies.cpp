#include "async_copies.h"

#include <deque>

#include "sanitizer.h"

namespace simt {
namespace {

struct Copy {
  SharedStorage* storage;
  int64_t index;
  int bytes;
  char data[16];
  uint32_t group;
};

struct CopyQueue {
  std::deque<Copy> copies;
  uint32_t group = 0;  // that the next copy belongs to
};

std::vector<CopyQueue> queues;  // by thread

CopyQueue& own_queue() { return queues[current_thread().linear]; }

}  // namespace

void issue_copy(SharedStorage& storage, int64_t index, const void* source, int bytes, const Where& where) {
  Copy copy{&storage, index, bytes, {}, 0};
  if (source != nullptr) {
    if (reinterpret_cast<uintptr_t>(source) % bytes != 0) fail("the source of a cp.async is not aligned", where);
    std::memcpy(copy.data, source, bytes);
  }
  storage.start_copy(index, bytes, where);
  const EmulatorSection section;
  copy.group = own_queue().group;
  own_queue().copies.push_back(copy);
}

void commit_copies() {
  const EmulatorSection section;
  ++own_queue().group;
}

void wait_for_copies(int groups_in_flight) {
  const EmulatorSection section;
  CopyQueue& queue = own_queue();
  while (!queue.copies.empty()) {
    const Copy& copy = queue.copies.front();
    if (copy.group + groups_in_flight >= queue.group) return;
    copy.storage->land(copy.index, copy.data, copy.bytes, current_instant());
    queue.copies.pop_front();
  }
}

void start_copies(int threads) {
  if (queues.size() < static_cast<size_t>(threads)) queues.resize(threads);
}

void check_copies_of_exiting_thread() {
  const EmulatorSection section;
  CopyQueue& queue = own_queue();
  if (!queue.copies.empty()) fail("a thread exits while its cp.async copies are in flight", Where::current());
  queue.group = 0;
}

}  // namespace simt
