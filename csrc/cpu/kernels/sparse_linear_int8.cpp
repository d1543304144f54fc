#include "paired_columns.h"

namespace persimmon::cpu::PERSIMMON_ISA {

void sparse_linear_int8(const SparseLinearParams& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16 && p.M > 1) return axpy<bf16, PairedColumns<int8_t>>(p, begin, end);
#endif
  with_type(p.dtype, [&](auto tag) { axpy<decltype(tag), WideColumns<int8_t>>(p, begin, end); });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
