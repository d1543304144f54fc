#include "../normed_products.h"

#include <torch/library.h>

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("norm_linear", persimmon::norm_linear<persimmon::composed_norm_linear>);
  m.impl("norm_mlp", persimmon::norm_mlp<persimmon::composed_norm_mlp>);
}
