#include "global_buffer.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <new>

namespace simt {
namespace {

constexpr size_t kPage = 4096;
constexpr char kCanary = 0x5a;

// Runs on the faulting fiber's stack: the fault lies in a buffer, not in the stack.
void report_fault(int, siginfo_t* info, void*) {
  char message[128];
  std::snprintf(message, sizeof(message), "memory fault at %p: an access outside a global buffer", info->si_addr);
  fail(message, Where::current());
}

void install_fault_handler() {
  struct sigaction action{};
  action.sa_sigaction = report_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
}

}  // namespace

GuardedMemory::GuardedMemory(size_t bytes) : mapping_bytes_((bytes + kPage - 1) / kPage * kPage + 2 * kPage) {
  void* mapping = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  install_fault_handler();
  mapping_ = static_cast<char*>(mapping);
  char* const end = mapping_ + mapping_bytes_ - kPage;
  data_ = end - bytes;
  std::fill(mapping_ + kPage, data_, kCanary);
  mprotect(mapping_, kPage, PROT_NONE);
  mprotect(end, kPage, PROT_NONE);
}

GuardedMemory::~GuardedMemory() { munmap(mapping_, mapping_bytes_); }

void GuardedMemory::check(const Where& where) const {
  const char* const first = mapping_ + kPage;
  if (std::any_of(first, static_cast<const char*>(data_), [](char byte) { return byte != kCanary; })) {
    fail("something wrote in front of a global buffer", where);
  }
}

}  // namespace simt
