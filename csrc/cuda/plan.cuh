// Host arithmetic shared by the launch plans.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

constexpr int64_t kMaxGridYZ = 65535;  // blocks of a grid in its second or third dimension

inline int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

inline bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

}  // namespace persimmon::cuda
