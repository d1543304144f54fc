// Interface of the emulator's runtime. One launch runs at a time per process; every CUDA thread is a fiber, so a kernel
// runs in one OS thread and a seed repeats its schedule exactly.
#pragma once
#include <functional>
#include <source_location>

#include "emulator_types.h"

namespace simt {

using Where = std::source_location;

inline constexpr int kMaxThreads = 1024;

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

// __syncthreads, and the barriers 1 to 15 among `threads` of the block's threads: waiting for them, or only arriving.
void block_barrier(const Where& where);
void named_barrier_sync(int barrier, int threads, const Where& where = Where::current());
void named_barrier_arrive(int barrier, int threads, const Where& where = Where::current());

// An operation that the lanes of a mask do together: when the last of them arrives, `execute` gets every lane's
// argument.
struct Collective {
  const char* name;
  bool orders_memory;
  void (*execute)(uint32_t mask, void* const (&arguments)[32]);
};
void warp_collective(uint32_t mask, const Collective& collective, void* argument, const Where& where);

// For operations that make threads wait: suspends the current thread until some other calls make_ready with its number.
// `state` says in a report of a deadlock what it does, such as "waits at __syncthreads".
void suspend(const char* state, const Where& where);
void make_ready(int thread);
// Lets other threads overtake the current one, where the schedule is not that of seed 0.
void give_way();

}  // namespace simt
