// The emulator's cp.async. Data lands only when somebody waits for it, and an element is out of bounds
// for every access from the copy's issue to its landing: a missing or too weak wait, and a buffer refilled while others
// still read it, are errors under every schedule.
#pragma once
#include "shared_memory.h"

namespace simt {

// cp.async: `bytes` (16 or 4) to the element at `index` of `storage`, zeros where `source` is null. The thread that
// issued it waits by groups.
void issue_copy(SharedStorage& storage, int64_t index, const void* source, int bytes, const Where& where);
void commit_copies();
void wait_for_copies(int groups_in_flight);

// Called by the scheduler.
void start_copies(int threads);         // a new block begins
void check_copies_of_exiting_thread();  // the current thread exits

}  // namespace simt
