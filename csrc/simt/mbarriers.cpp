#include "mbarriers.h"

#include <memory>

#include "sanitizer.h"

namespace simt {
namespace {

struct Barrier {
  SharedStorage* storage;
  int64_t index;
  int copier;  // its number as an actor
  int arrivals;
  int pending;
  int64_t bytes = 0;   // expected and not yet copied
  uint32_t phase = 0;  // phases completed
  std::vector<int> waiting;
  Knowledge arriving, completed;
};

struct CopyInFlight {
  BulkCopy copy;
  Barrier* barrier;
  uint32_t phase;  // that counts it
};

constexpr int kRowBytes = 128, kChunkBytes = 16, kTileAlignment = 1024;

std::vector<std::unique_ptr<Barrier>> barriers;
std::vector<CopyInFlight> in_flight;

Barrier& find(const SharedStorage& storage, int64_t index, const Where& where) {
  for (const auto& barrier : barriers) {
    if (barrier->storage == &storage && barrier->index == index) return *barrier;
  }
  fail("the mbarrier has not been initialised", where);
}

void complete_phase_if_due(Barrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  barrier.arriving.set_copier(barrier.copier, barrier.phase);
  barrier.completed.merge(barrier.arriving);
  for (const int thread : barrier.waiting) make_ready(thread);
  barrier.waiting.clear();
}

void check_initialised(const Barrier& barrier, const Where& where) {
  // Reading the word finds an initialisation that no block barrier separates from this use.
  barrier.storage->read(barrier.index, sizeof(uint64_t), where);
}

}  // namespace

void start_mbarriers() { barriers.clear(); }

void init_mbarrier(SharedStorage& storage, int64_t index, int arrivals, const Where& where) {
  const EmulatorSection section;
  for (const auto& barrier : barriers) {
    if (barrier->storage == &storage && barrier->index == index) fail("an mbarrier is initialised twice", where);
  }
  if (arrivals < 1) fail("an mbarrier needs at least one arrival", where);
  storage.write(index, sizeof(uint64_t), where);
  barriers.push_back(std::make_unique<Barrier>());
  Barrier& barrier = *barriers.back();
  barrier.storage = &storage;
  barrier.index = index;
  barrier.copier = new_copier(where);
  barrier.arrivals = barrier.pending = arrivals;
}

void arrive_at_mbarrier(SharedStorage& storage, int64_t index, int expected_bytes, const Where& where) {
  const EmulatorSection section;
  Barrier& barrier = find(storage, index, where);
  check_initialised(barrier, where);
  if (barrier.pending == 0) fail("more arrivals at an mbarrier than a phase counts", where);
  publish(barrier.arriving);
  publish_to(&barrier);
  barrier.bytes += expected_bytes;
  --barrier.pending;
  complete_phase_if_due(barrier);
  give_way();
}

void wait_for_mbarrier(SharedStorage& storage, int64_t index, int parity, const Where& where) {
  const EmulatorSection section;
  Barrier& barrier = find(storage, index, where);
  check_initialised(barrier, where);
  if (parity != 0 && parity != 1) fail("the parity of an mbarrier's phase is not 0 or 1", where);
  if (static_cast<int>(barrier.phase % 2) == parity) {
    const uint32_t awaited = barrier.phase;
    barrier.waiting.push_back(current_thread().linear);
    suspend("waits for a phase of an mbarrier", where);
    if (barrier.phase != awaited + 1)
      fail("lost phase: an mbarrier went on while a thread waited for the phase before", where);
  }
  learn(barrier.completed);
  learn_from(&barrier);
}

void issue_bulk_copy(const BulkCopy& copy, SharedStorage& barrier_storage, int64_t barrier_index, const Where& where) {
  const EmulatorSection section;
  Barrier& barrier = find(barrier_storage, barrier_index, where);
  check_initialised(barrier, where);
  if (copy.storage->shared_offset(copy.index) % kTileAlignment != 0)
    fail("the tile of a bulk copy is not aligned to 1024 bytes", where);
  for (int row = 0; row < copy.map.box_rows; ++row) {
    copy.storage->start_copy(copy.index + copy.storage->elements_in(row * kRowBytes), kRowBytes, where);
  }
  publish_to(&barrier);
  in_flight.push_back({copy, &barrier, barrier.phase});
}

bool finish_bulk_copy(uint64_t random) {
  if (in_flight.empty()) return false;
  const EmulatorSection section;
  const size_t chosen = random % in_flight.size();
  const auto [copy, barrier, phase] = in_flight[chosen];
  in_flight.erase(in_flight.begin() + static_cast<int64_t>(chosen));
  const TensorMap& map = copy.map;
  if (barrier->phase != phase)
    fail("an mbarrier completed its phase before a bulk copy that it counts: it expected too few bytes",
         Where::current());
  const Instant landing{kMaxThreads + barrier->copier, 0, phase + 1};
  const int64_t head_offset = copy.batch * map.batch_stride + copy.head * map.head_stride;
  for (int r = 0; r < map.box_rows; ++r) {
    const int64_t row = copy.row + r;
    const bool inside = row >= 0 && row < map.rows && copy.head < map.heads && copy.batch < map.batch;
    char data[kRowBytes] = {};
    if (inside) std::memcpy(data, map.data + (head_offset + row * map.row_stride) * 2, kRowBytes);
    for (int chunk = 0; chunk < kRowBytes / kChunkBytes; ++chunk) {
      const int place = r * kRowBytes + (chunk ^ r % 8) * kChunkBytes;
      copy.storage->land(copy.index + copy.storage->elements_in(place), data + chunk * kChunkBytes, kChunkBytes,
                         landing);
    }
  }
  barrier->bytes -= int64_t{map.box_rows} * kRowBytes;
  complete_phase_if_due(*barrier);
  return true;
}

void check_bulk_copies_of_finished_block() {
  if (!in_flight.empty()) fail("a block ends while its bulk copies are in flight", Where::current());
}

}  // namespace simt
