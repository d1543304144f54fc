// Shared memory of the emulator: arrays whose every access is checked for bounds and for races.
//
// An array starts each block as NaN (all bits set). Each element remembers who last wrote and read it, and at which
// barrier clock; two accesses by different threads, one of them a write, with no barrier between them are an error
// whatever the schedule was. So a missing barrier is found by any seed, also where the values happen to come out right.
#pragma once
#include <memory>
#include <vector>

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

// One array: the bytes, and a record for every element.
class SharedStorage {
 public:
  SharedStorage(const char* name, size_t element_bytes, int64_t count);

  // Check and note an access to `count` elements from `index` on; return the address of the first.
  const void* read(int64_t index, int64_t count, const Where& where);
  void* write(int64_t index, int64_t count, const Where& where);

 private:
  struct Element {
    AccessRecord read, write;
  };
  struct Free {
    void operator()(void* memory) const;
  };

  void check_bounds(int64_t index, int64_t count, const Where& where) const;
  void reset_for_new_block();
  char* address(int64_t index) const { return bytes_.get() + index * static_cast<int64_t>(element_bytes_); }

  const char* const name_;
  const size_t element_bytes_;
  const int64_t count_;
  uint64_t block_ = 0;  // no block has number 0
  std::unique_ptr<char, Free> bytes_;
  std::vector<Element> elements_;
};

// What a pointer to shared memory is on a GPU: a place in a SharedStorage of elements T.
template <class T>
class Shared {
  // The index with the place in the kernel where it was written, for messages.
  struct Index {
    template <class Integer>
    Index(Integer position, const Where& place = Where::current())  // NOLINT(google-explicit-constructor)
        : value(position), where(place) {}
    int64_t value;
    Where where;
  };

 public:
  // Stands for array[i]; reading and assigning it are the checked accesses.
  class Element {
   public:
    Element(SharedStorage& storage, int64_t index, const Where& where)
        : storage_(storage), index_(index), where_(where) {}
    operator T() const {  // NOLINT(google-explicit-constructor): reads like the element itself
      T value;
      std::memcpy(&value, storage_.read(index_, 1, where_), sizeof(T));
      return value;
    }
    const Element& operator=(T value) const {
      std::memcpy(storage_.write(index_, 1, where_), &value, sizeof(T));
      return *this;
    }

   private:
    SharedStorage& storage_;
    const int64_t index_;
    const Where where_;
  };

  explicit Shared(SharedStorage& storage, int64_t offset = 0) : storage_(&storage), offset_(offset) {}

  Element operator[](Index index) const { return Element(*storage_, offset_ + index.value, index.where); }
  Shared operator+(int64_t elements) const { return Shared(*storage_, offset_ + elements); }

 private:
  SharedStorage* storage_;
  int64_t offset_;  // of element 0
};

// Stands for the dynamic shared memory of a launch.
struct DynamicShared {};

// The storage of the region that lies `offset` bytes into it; the same for every thread of the launch. Regions may not
// overlap.
SharedStorage& dynamic_region(size_t offset, size_t element_bytes, int64_t count, const char* name, const Where& where);

template <class T>
Shared<T> shared_region(DynamicShared, size_t offset, int64_t count, const char* name,
                        const Where& where = Where::current()) {
  return Shared<T>(dynamic_region(offset, sizeof(T), count, name, where));
}

// Called by run() before the first block of a launch.
void start_dynamic_shared(size_t bytes);

}  // namespace simt
