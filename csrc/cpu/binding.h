// Shared by the files that register CPU kernels: element types, and how work is split between threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "../checks.h"
#include "kernels/kernel.h"

namespace persimmon::cpu {

inline DType dtype_of(const at::Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::f32;
    case at::kBFloat16:
      return DType::bf16;
    case at::kHalf:
      return DType::f16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be float32, bfloat16 or float16, got ", dtype_name(t.scalar_type()), ".");
  }
}

// Runs kernel(params, begin, end) over [0, items), in parallel where a thread gets at least `kGrainBytes` to touch.
template <class Params>
void parallel(void (*kernel)(const Params&, int64_t, int64_t), const Params& params, int64_t items,
              int64_t bytes_per_item) {
  constexpr int64_t kGrainBytes = 64 << 10;  // below this, waking a thread costs more than it saves
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, bytes_per_item));
  at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

}  // namespace persimmon::cpu
