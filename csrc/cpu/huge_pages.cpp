#include "huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace persimmon::cpu {

void advise_huge_pages([[maybe_unused]] uintptr_t address, [[maybe_unused]] uintptr_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace persimmon::cpu
