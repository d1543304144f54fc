// The emulator's warpgroup products. A product is computed when its warp waits for it, from what shared memory holds
// then; its accumulators are NaN in between. The tiles count as read both at the issue and at the wait, so a tile that
// is refilled in between is a race under every schedule.
#pragma once
#include "shared_memory.h"

namespace simt {

// A tile in shared memory of 128-byte rows.
struct SwizzledTile {
  SharedStorage* storage;
  int64_t index;
};

struct WgmmaProduct {
  float* d;           // [columns / 8][4] accumulators of the lane
  int columns;        // of b
  const uint32_t* a;  // 4 registers of the lane, or null: from `a_tile`
  SwizzledTile a_tile, b_tile;
  int k;            // first column of the tiles, or first row of b_tile where `by_columns`
  bool by_columns;  // b is rows of its tile rather than the transpose of columns
  bool accumulate;
  float (*to_float)(uint16_t bits);
};
void issue_wgmma(const WgmmaProduct& product, const Where& where);
void fence_wgmma(const Where& where);
void commit_wgmma(const Where& where);
void wait_for_wgmma(int groups_in_flight, const Where& where);

// Called by the scheduler.
void start_wgmma();                    // a new block begins
void check_wgmma_of_exiting_thread();  // the current thread exits

}  // namespace simt
