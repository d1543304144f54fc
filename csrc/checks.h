// Argument checks that read as sentences: the name, the rule, and the value that broke it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <initializer_list>
#include <optional>

namespace persimmon {

using OptionalTensor = std::optional<at::Tensor>;

inline void check_shape(const at::Tensor& t, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(t.sizes() == shape, name, " must have shape ", shape, ", got ", t.sizes(), ".");
}

inline void check_dim(const at::Tensor& t, const char* name, int64_t dim) {
  TORCH_CHECK_VALUE(t.dim() == dim, name, " must have ", dim, " dimensions, got shape ", t.sizes(), ".");
}

// A dtype's name as Python has it.
inline const char* dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    case at::kLong:
      return "int64";
    case at::kInt:
      return "int32";
    case at::kChar:
      return "int8";
    case at::kByte:
      return "uint8";
    case at::kBool:
      return "bool";
    default:
      return c10::toString(dtype);
  }
}

inline void check_dtype(const at::Tensor& t, const char* name, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, name, " must be ", dtype_name(dtype), ", got ",
                   dtype_name(t.scalar_type()), ".");
}

inline void check_same_device(const at::Tensor& t, const char* name, const at::Tensor& x, const char* x_name) {
  TORCH_CHECK_VALUE(t.device() == x.device(), name, " must be on ", x_name, "'s device ", x.device(), ", got ",
                    t.device(), ".");
}

// `t` has x's device and dtype, and the given shape.
inline void check_like(const at::Tensor& t, const char* name, const at::Tensor& x, const char* x_name,
                       at::IntArrayRef shape) {
  check_same_device(t, name, x, x_name);
  TORCH_CHECK_TYPE(t.scalar_type() == x.scalar_type(), name, " must have ", x_name, "'s dtype ",
                   dtype_name(x.scalar_type()), ", got ", dtype_name(t.scalar_type()), ".");
  check_shape(t, name, shape);
}

// What a norm adds to the variance.
inline void check_eps(double eps) {
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= 0.0, "eps must be finite and not negative, got ", eps, ".");
}

// Of attention's scores.
inline void check_score_scale(double scale) {
  TORCH_CHECK_VALUE(std::isfinite(scale), "scale must be finite, got ", scale, ".");
}

}  // namespace persimmon
