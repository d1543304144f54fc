// Products that stream the rows of a hidden-major weight, all of them or those that some row of x needs.
#pragma once

#include "kernels/sparse_linear.h"
#include "linear.h"

namespace persimmon::cpu {

using SparseKernel = void (*)(const SparseLinearParams&, int64_t, int64_t);

// At most kFewRows rows of x and row j of W^T contiguous. Takes every row, or those that x does not multiply by zero.
// `group_scale` goes to the kernel, `column_scale` [N] multiplies the sums; both may be undefined.
void streamed_product(SparseKernel kernel, const Product& p, const at::Tensor& weight, const at::Tensor& group_scale,
                      const at::Tensor& column_scale, bool all_rows);

// The same on a hidden-major weight [N, K] in x's dtype.
void hidden_major_product(const Product& p, const at::Tensor& weight, bool all_rows);

}  // namespace persimmon::cpu
