// Interface of the emulator's runtime: what emulator.h and the tests call. One launch runs at a time per process; every
// CUDA thread is a fiber, so a kernel runs in one OS thread and a seed repeats its schedule exactly.
#pragma once
#include <functional>
#include <source_location>

#include "emulator_types.h"

namespace simt {

using Where = std::source_location;

struct Thread {
  uint3 index;
  int linear;  // x fastest, then y, then z
  int lane;
  int warp;
};

const Thread& current_thread();
const uint3& block_index();
const dim3& block_size();
const dim3& grid_size();

// Order of threads and blocks. 0: in order. Odd: one warp runs as far ahead as it can. Even: uniformly random.
void set_seed(uint64_t seed);

// Runs `body` once for every thread of every block, each with `shared_bytes` of dynamic shared memory.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Prints what went wrong, where and in which thread, and ends the process with kErrorExit.
inline constexpr int kErrorExit = 42;
[[noreturn]] void fail(const char* what, const Where& where);

void block_barrier(const Where& where);

// An operation that the lanes of a mask do together: when the last of them arrives, `execute` gets every lane's
// argument.
struct Collective {
  const char* name;
  bool orders_memory;
  void (*execute)(uint32_t mask, void* const (&arguments)[32]);
};
void warp_collective(uint32_t mask, const Collective& collective, void* argument, const Where& where);

// Logical clocks for the race check of shared memory: they count the barriers passed by the block and the
// memory-ordering warp collectives passed by the current warp; `block` identifies the block that runs.
struct Clock {
  uint64_t block;
  uint32_t block_barriers;
  uint32_t warp_barriers;
};
Clock current_clock();

}  // namespace simt
