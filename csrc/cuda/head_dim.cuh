// The sizes that the attention kernels are written for: Persimmon's.
#pragma once

namespace persimmon::cuda {

constexpr int kHeadDim = 64;
constexpr int kRotaryDim = 32;  // the leading dimensions of a head that are rotated

}  // namespace persimmon::cuda
