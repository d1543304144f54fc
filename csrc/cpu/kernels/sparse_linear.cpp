#include "sparse_linear.h"

#include "paired_columns.h"

namespace persimmon::cpu::PERSIMMON_ISA {

void sparse_linear(const SparseLinearParams& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) return axpy<bf16, PairedColumns<bf16>>(p, begin, end);
#endif
  with_type(p.dtype, [&](auto tag) { axpy<decltype(tag), WideColumns<decltype(tag)>>(p, begin, end); });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
