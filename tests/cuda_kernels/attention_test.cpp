// attention under the emulator against a float64 reference.
// Cases: bfloat16 float16 refused
#include "attention_forward_test.h"

int main(int argc, char** argv) {
  return attention_test::run_forward<persimmon::cuda::launch_attention, cudaSuccess>(argc, argv);
}
