#include "sparse_linear.h"

#include "paired_columns.h"

namespace persimmon::cpu::PERSIMMON_ISA {

void sparse_linear(const SparseLinearParams& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) {
    return axpy<bf16>(PairedColumns<bf16>{static_cast<const bf16*>(p.weight), p.C, p.M, p.C}, p, begin, end);
  }
#endif
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    axpy<T>(WideColumns<T>{static_cast<const T*>(p.weight), p.C, p.M, p.C}, p, begin, end);
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
