// Global memory for kernel tests: a buffer that ends exactly at an inaccessible page, so that any access past its end
// is an error with or without a sanitizer; the memory in front of it is checked for writes when check() is called.
#pragma once
#include "runtime.h"

namespace simt {

// `bytes` of memory between two guard pages, aligned to the end.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes);
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory();

  void* data() const { return data_; }
  // Fails if something wrote in front of the buffer.
  void check(const Where& where = Where::current()) const;

 private:
  char* mapping_;
  size_t mapping_bytes_;
  char* data_;
};

// `count` elements, at first all bits set (NaN for every floating type).
template <class T>
class GlobalBuffer {
 public:
  explicit GlobalBuffer(size_t count) : memory_(count * sizeof(T)), count_(count) {
    if (count > 0) std::memset(memory_.data(), 0xff, count * sizeof(T));
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  size_t size() const { return count_; }
  T& operator[](size_t index) const { return data()[index]; }
  void check(const Where& where = Where::current()) const { memory_.check(where); }

 private:
  GuardedMemory memory_;
  size_t count_;
};

}  // namespace simt
