// mbarriers, bulk tensor copies and warpgroup products under g++; device_hopper.h says what each does.
#pragma once
#include "mbarriers.h"
#include "wgmma.h"

namespace simt {

inline constexpr bool kHopper = true;

template <auto kKernel>
bool has_hopper_code() {
  return true;
}

inline void mbarrier_init(Shared<uint64_t> barrier, int arrivals, const Where& where = Where::current()) {
  init_mbarrier(barrier.storage(), barrier.offset(), arrivals, where);
}
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive(Shared<uint64_t> barrier, const Where& where = Where::current()) {
  arrive_at_mbarrier(barrier.storage(), barrier.offset(), 0, where);
}
inline void mbarrier_arrive_expect(Shared<uint64_t> barrier, int bytes, const Where& where = Where::current()) {
  arrive_at_mbarrier(barrier.storage(), barrier.offset(), bytes, where);
}
inline void mbarrier_wait(Shared<uint64_t> barrier, int parity, const Where& where = Where::current()) {
  wait_for_mbarrier(barrier.storage(), barrier.offset(), parity, where);
}

inline bool make_tensor_map(TensorMap* map, Dtype, const void* data, int64_t rows, int64_t heads, int64_t batch,
                            int64_t row_stride, int64_t head_stride, int64_t batch_stride, int box_rows) {
  *map = {static_cast<const char*>(data), rows, heads, batch, row_stride, head_stride, batch_stride, box_rows};
  const bool aligned =
      (reinterpret_cast<uintptr_t>(data) | row_stride * 2 | head_stride * 2 | batch_stride * 2) % 16 == 0;
  return aligned && rows > 0 && heads > 0 && batch > 0 && box_rows > 0 && box_rows <= 256;
}
template <class T>
void tma_load(Shared<T> tile, const TensorMap& map, Shared<uint64_t> barrier, int row, int head, int batch,
              const Where& where = Where::current()) {
  issue_bulk_copy({map, &tile.storage(), tile.offset(), row, head, batch}, barrier.storage(), barrier.offset(), where);
}

inline void wgmma_fence(const Where& where = Where::current()) { fence_wgmma(where); }
inline void wgmma_commit(const Where& where = Where::current()) { commit_wgmma(where); }
template <int kGroupsInFlight>
void wgmma_wait(const Where& where = Where::current()) {
  wait_for_wgmma(kGroupsInFlight, where);
}
template <int kColumns>
void wgmma_pin(float (&)[kColumns][4]) {}

template <class T>
SwizzledTile swizzled_tile(Shared<T> tile) {
  return {&tile.storage(), tile.offset()};
}
template <class T>
float bits_to_float(uint16_t bits) {
  return to_float(T{bits});
}
template <class T>
void wgmma_by_rows(T, float (&d)[16][4], SwizzledTile a, SwizzledTile b, int k, bool accumulate,
                   const Where& where = Where::current()) {
  issue_wgmma({&d[0][0], 128, nullptr, a, b, k, false, accumulate, bits_to_float<T>}, where);
}
template <class T>
void wgmma_by_columns(T, float (&d)[8][4], const uint32_t (&a)[4], SwizzledTile b, int k,
                      const Where& where = Where::current()) {
  issue_wgmma({&d[0][0], 64, a, {}, b, k, true, true, bits_to_float<T>}, where);
}

template <int kCount>
void release_registers() {}
template <int kCount>
void take_registers() {}

}  // namespace simt
