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

// An output just allocated. The system may have to map new memory for it: always above the 32 MiB that the heap serves,
// and below wherever the heap gave its end back, which it does when more than twice its largest piece lies free there,
// as after two outputs of one op. The interrupts then take longer than a kernel bound by memory does.
inline at::Tensor on_huge_pages(at::Tensor output) {
  constexpr size_t kWorthAsking = 4 << 20;  // has a whole huge page in it, wherever it begins
  if (output.nbytes() >= kWorthAsking) {
    advise_huge_pages(reinterpret_cast<uintptr_t>(output.const_data_ptr()), output.nbytes());
  }
  return output;
}

}  // namespace persimmon::cpu
