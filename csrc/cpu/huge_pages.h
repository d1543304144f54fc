// Large tensors on pages of 2 MiB instead of 4 KiB. Looking up addresses then doesn't hold up reading (a virtual
// machine looks up every address twice), and memory that is written for the first time costs 512 times fewer
// interrupts.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace persimmon::cpu {

// Asks the system for huge pages behind [address, address + bytes). Counts where nothing has been written there yet. A
// hint: without effect where the system has no such pages, or where none fits.
void advise_huge_pages(uintptr_t address, uintptr_t bytes);

// An output just allocated. Below this size it comes from the heap, whose pages are there already; above, the system
// maps new memory for every call, and its interrupts take longer than a kernel bound by memory does.
inline at::Tensor on_huge_pages(at::Tensor output) {
  constexpr size_t kMapped = 32 << 20;
  if (output.nbytes() >= kMapped) {
    advise_huge_pages(reinterpret_cast<uintptr_t>(output.const_data_ptr()), output.nbytes());
  }
  return output;
}

}  // namespace persimmon::cpu
