// Shared memory of the emulator: arrays whose every access is checked for bounds and for races.
//
// An array starts each block as NaN (all bits set). Each element remembers when it was last written and by whom it was
// read since; two accesses of which neither happened before the other, one of them a write, are an error whatever the
// schedule was. So a missing barrier is found by any seed, also where the values happen to come out right.
#pragma once
#include <memory>
#include <vector>

#include "clocks.h"

namespace simt {

// One array: the bytes, and a record for every element.
class SharedStorage {
 public:
  // `offset` is that of a region in the dynamic shared memory.
  SharedStorage(const char* name, size_t element_bytes, int64_t count, size_t offset = 0);

  // Check and note an access to `bytes` bytes, whole elements from `index` on; return the address of the first.
  const void* read(int64_t index, int64_t bytes, const Where& where);
  void* write(int64_t index, int64_t bytes, const Where& where);
  // The same for an atomic operation, which other ones do not disturb.
  void* update(int64_t index, int64_t bytes, const Where& where);

  // The same for a write that an asynchronous copy will make. Until land() the elements may not be accessed; from then
  // on they count as written at the `instant`.
  void start_copy(int64_t index, int64_t bytes, const Where& where);
  void land(int64_t index, const void* data, int64_t bytes, const Instant& instant);

  // The same for a read by an asynchronous unit, which also needs a fence after writes of threads.
  const void* read_by_async_proxy(int64_t index, int64_t bytes, const Where& where);

  int64_t elements_in(int64_t bytes) const { return bytes / element_bytes_; }
  // Bytes from the start of the dynamic shared memory to an element.
  int64_t shared_offset(int64_t index) const { return offset_ + index * element_bytes_; }

 private:
  struct Accesses {
    Instant latest;
    std::unique_ptr<std::vector<Instant>> others;  // earlier ones that did not happen before it

    void add_current();
    const Instant* not_happened() const;  // one of them, or null
  };
  struct Element {
    Instant write;
    Accesses reads, updates;  // since the write
    bool in_flight = false;

    void restart(const Instant& written, bool copying) {
      write = written;
      reads = Accesses{};
      updates = Accesses{};
      in_flight = copying;
    }
  };
  struct Free {
    void operator()(void* memory) const;
  };
  struct Range {
    int64_t begin, end;
  };

  Range begin_access(int64_t index, int64_t bytes, const Where& where);
  // Checks that the access `name` comes after writes and after those of the kind `disturbing`; notes it as one of
  // `own`.
  char* access(const char* name, Accesses Element::* own, Accesses Element::* disturbing, int64_t index, int64_t bytes,
               const Where& where);
  void check_landed(int64_t index, const Where& where) const;
  void check_after_write(const char* access, int64_t index, const Where& where) const;
  void check_after(const Accesses& others, const char* access, int64_t index, const Where& where) const;
  void check_after_all(const char* access, int64_t index, const Where& where) const;
  void reset_for_new_block();
  char* address(int64_t index) const { return bytes_.get() + index * element_bytes_; }

  const char* const name_;
  const int64_t element_bytes_;
  const int64_t count_;
  const int64_t offset_;
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
      std::memcpy(&value, storage_.read(index_, sizeof(T), where_), sizeof(T));
      return value;
    }
    const Element& operator=(T value) const {
      std::memcpy(storage_.write(index_, sizeof(T), where_), &value, sizeof(T));
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

  // For the wrappers of instructions.
  SharedStorage& storage() const { return *storage_; }
  int64_t offset() const { return offset_; }

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
