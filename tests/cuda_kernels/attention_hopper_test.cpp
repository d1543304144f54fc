// attention's Hopper kernel under the emulator against a float64 reference.
// Cases: bfloat16 float16 refused
#include "cuda/attention_hopper.cuh"

#include "attention_forward_test.h"

int main(int argc, char** argv) {
  return attention_test::run_forward<persimmon::cuda::launch_attention_hopper, cudaErrorNotSupported>(argc, argv);
}
