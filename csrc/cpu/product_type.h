// The dtype that large matrix products are computed in.
#pragma once

#include <c10/core/ScalarType.h>

namespace persimmon::cpu {

// fp16 products go through fp32, a tile of the weight at a time: of 32 rows with a 2048 x 1024 weight, on a core of a
// processor without AVX-512 FP16, torch's own takes 14 ms (430 ms where the weight is hidden-major), this takes 5 ms.
inline at::ScalarType product_type(at::ScalarType type) { return type == at::kHalf ? at::kFloat : type; }

}  // namespace persimmon::cpu
