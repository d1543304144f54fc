// The emulator's mbarriers and the bulk copies that they count.
//
// A bulk copy reads its source and lands at a time that the scheduler chooses: when every thread waits, or, with even
// seeds, at random. Until a thread has waited for the phase that counts it, its data is out of bounds for the thread.
#pragma once
#include "shared_memory.h"

namespace simt {

void init_mbarrier(SharedStorage& storage, int64_t index, int arrivals, const Where& where);
void arrive_at_mbarrier(SharedStorage& storage, int64_t index, int expected_bytes, const Where& where);
void wait_for_mbarrier(SharedStorage& storage, int64_t index, int parity, const Where& where);

// [batch, head, row, 64] 16-bit elements in global memory; strides in elements.
struct TensorMap {
  const char* data;
  int64_t rows, heads, batch;
  int64_t row_stride, head_stride, batch_stride;
  int box_rows;
};

struct BulkCopy {
  TensorMap map;  // a copy: the thread that issues it may exit
  SharedStorage* storage;
  int64_t index;
  int row, head, batch;
};
void issue_bulk_copy(const BulkCopy& copy, SharedStorage& barrier_storage, int64_t barrier_index, const Where& where);

// Called by the scheduler.
void start_mbarriers();                  // a new block begins
bool finish_bulk_copy(uint64_t random);  // one of those in flight; returns whether there was one
void check_bulk_copies_of_finished_block();

}  // namespace simt
