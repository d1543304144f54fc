#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SIMT_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

extern "C" void simt_switch_stack(void** saved_stack_pointer, void* next_stack_pointer);

// Saves the callee-saved registers on the running stack, changes stacks, restores those of the other one.
asm(R"(
.text
.type simt_switch_stack,@function
.globl simt_switch_stack
simt_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");

namespace simt {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4096;
constexpr int kSavedRegisters = 6;

}  // namespace

Fiber::Fiber() {
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack_low_, &stack_bytes_);
  pthread_attr_destroy(&attributes);
#ifdef SIMT_THREAD_SANITIZER
  sanitizer_fiber_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*entry)()) : stack_bytes_(kStackBytes) {
  mapping_ = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, kGuardBytes, PROT_NONE);
  stack_low_ = static_cast<char*>(mapping_) + kGuardBytes;
  // Laid out as simt_switch_stack leaves it: registers, then the return address; the null above keeps the alignment
  // that a function expects at its entry.
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack_low_) + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
#ifdef SIMT_THREAD_SANITIZER
  sanitizer_fiber_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (mapping_ == nullptr) return;
  munmap(mapping_, kStackBytes + kGuardBytes);
#ifdef SIMT_THREAD_SANITIZER
  __tsan_destroy_fiber(sanitizer_fiber_);
#endif
}

void Fiber::resume(Fiber& from) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.sanitizer_stack_, stack_low_, stack_bytes_);
#endif
#ifdef SIMT_THREAD_SANITIZER
  __tsan_switch_to_fiber(sanitizer_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
  simt_switch_stack(&from.stack_pointer_, stack_pointer_);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.sanitizer_stack_, nullptr, nullptr);
#endif
}

void Fiber::started() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace simt
