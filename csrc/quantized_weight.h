// Checks and conversion of quantised weights, for the products on them, on any device. None reads a value.
#pragma once

#include <ATen/core/Tensor.h>

namespace persimmon {

// codes and scale are of their types, on x's device.
void check_codes(const at::Tensor& x, const at::Tensor& weight, at::ScalarType dtype, const at::Tensor& scale);

// Checks what an int4 weight [A, B/2] and its scale [A, B/64] need beyond that, and returns B.
int64_t check_packed(const at::Tensor& weight, const at::Tensor& scale);

at::Tensor dequantize_int4(const at::Tensor& packed, const at::Tensor& scale);  // [A, B/2], [A, B/64] -> fp32 [A, B]

}  // namespace persimmon
