// Shared memory of the emulator: arrays whose every access is checked for bounds and for races.
//
// An array starts each block as NaN (all bits set). Each element remembers who last wrote and read it, and at which
// barrier clock; two accesses by different threads, one of them a write, with no barrier between them are an error
// whatever the schedule was. So a missing barrier is found by any seed, also where the values happen to come out right.
#pragma once
#include "runtime.h"

namespace simt {

// The last accesses of one kind (read or write) to an element.
struct AccessRecord {
  static constexpr int kNobody = -1;
  static constexpr int kSeveral = -2;
  uint32_t block_barriers = 0;
  uint32_t warp_barriers = 0;
  int thread = kNobody;  // linear index, kNobody or kSeveral
  int warp = kNobody;
};
struct ElementRecord {
  AccessRecord read;
  AccessRecord write;
};

// Check and note one access; `name` and `index` are for the message.
void note_read(ElementRecord& record, const char* name, int64_t index, const Where& where);
void note_write(ElementRecord& record, const char* name, int64_t index, const Where& where);
[[noreturn]] void fail_bounds(const char* name, int64_t index, int64_t count, const Where& where);

template <class T, int kCount>
class SharedArray {
  // The index with the place in the kernel where it was written, for messages.
  struct Index {
    template <class Integer>
    Index(Integer position, const Where& place = Where::current())
        : value(position), where(place) {}  // NOLINT: implicit
    int64_t value;
    Where where;
  };

 public:
  // Stands for array[i]; reading and assigning it are the checked accesses.
  class Element {
   public:
    Element(SharedArray& array, const Index& index) : array_(array), index_(index) {}
    operator T() const {  // NOLINT(google-explicit-constructor): reads like the element itself
      note_read(array_.records_[index_.value], array_.name_, index_.value, index_.where);
      return array_.values_[index_.value];
    }
    Element& operator=(T value) {
      note_write(array_.records_[index_.value], array_.name_, index_.value, index_.where);
      array_.values_[index_.value] = value;
      return *this;
    }

   private:
    SharedArray& array_;
    const Index index_;
  };

  explicit SharedArray(const char* name) : name_(name) {}

  Element operator[](Index index) {
    if (index.value < 0 || index.value >= kCount) fail_bounds(name_, index.value, kCount, index.where);
    reset_for_new_block();
    return Element(*this, index);
  }

 private:
  void reset_for_new_block() {
    const uint64_t running = current_clock().block;
    if (block_ == running) return;
    block_ = running;
    std::memset(values_, 0xff, sizeof(values_));
    for (ElementRecord& record : records_) record = ElementRecord{};
  }

  const char* const name_;
  uint64_t block_ = 0;  // no block has number 0
  T values_[kCount];
  ElementRecord records_[kCount];
};

}  // namespace simt
