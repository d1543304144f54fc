// A fiber: a stack and the registers saved on it. x86-64 System V only.
#pragma once
#include <cstddef>

namespace simt {

class Fiber {
 public:
  // Takes over the stack of the caller, which can then be switched away from and back to.
  Fiber();
  // Gets a stack of its own, with a guard page below it; `entry` runs at the first switch and never returns.
  explicit Fiber(void (*entry)());
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // Saves the running fiber in `from` and continues this one.
  void resume(Fiber& from);
  // To be called first thing in `entry`.
  static void started();

 private:
  void* stack_pointer_ = nullptr;
  void* mapping_ = nullptr;  // null for the caller's own stack
  void* stack_low_ = nullptr;
  size_t stack_bytes_ = 0;
  void* sanitizer_stack_ = nullptr;  // AddressSanitizer's own stack of this fiber
  void* sanitizer_fiber_ = nullptr;  // ThreadSanitizer's thread of this fiber
};

}  // namespace simt
