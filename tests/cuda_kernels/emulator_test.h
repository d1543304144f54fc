// What the emulator's own tests share: small kernels, right and wrong. A wrong one runs in a child process, which must
// end with the emulator's error code and the expected words.
//
// The tests of instructions (async, hopper) also run on a GPU, where they check the wrappers' PTX; wrong kernels don't.
#pragma once
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>

#include "kernel_test.h"

namespace emulator_test {

using kernel_test::expect;

#ifdef SIMT_THREAD_SANITIZER
inline constexpr int kSeeds = 1;
#else
inline constexpr int kSeeds = 8;
#endif

struct Outcome {
  int exit_status;  // -1 if a signal ended it
  std::string output;
};

// Runs `test` under the schedule `seed` in a child process; `output` is what it wrote to stderr.
inline Outcome run_in_child(int seed, const std::function<void()>& test) {
  int ends[2];
  if (pipe(ends) != 0) return {-1, "pipe failed"};
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    simt::set_seed(seed);
    test();
    _exit(0);
  }
  close(ends[1]);
  Outcome outcome;
  char chunk[1024];
  for (ssize_t n = 0; (n = read(ends[0], chunk, sizeof(chunk))) > 0;) outcome.output.append(chunk, n);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  outcome.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

#if !defined(__CUDACC__)
// Expects the emulator's error `words`, under several schedules.
inline void expect_error(const char* words, const std::function<void()>& test) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Outcome outcome = run_in_child(seed, test);
    expect(outcome.exit_status == simt::kErrorExit && outcome.output.find(words) != std::string::npos,
           std::string("expected the error '") + words + "' with seed " + std::to_string(seed) +
               ", got: " + outcome.output);
  }
}

#endif

inline int finish(const char* name) {
  std::printf("%s: %d failures\n", name, kernel_test::failures);
  return kernel_test::failures == 0 ? 0 : 1;
}

}  // namespace emulator_test
