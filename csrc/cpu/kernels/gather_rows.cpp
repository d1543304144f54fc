#include "sparse_linear.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

PERSIMMON_INLINE bool nonzero(float x) { return x != 0; }  // true for a NaN
PERSIMMON_INLINE bool nonzero(bf16 x) { return (x.bits & 0x7fff) != 0; }
PERSIMMON_INLINE bool nonzero(f16 x) { return (x.bits & 0x7fff) != 0; }

void gather_rows(const GatherRowsParams& p, int64_t, int64_t) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* x = static_cast<const T*>(p.x);
    uint8_t* __restrict mask = p.mask;
    __builtin_memset(mask, p.all, p.F);
    for (int64_t m = 0; m < p.M && !p.all; ++m) {
      for (int64_t j = 0; j < p.F; ++j) mask[j] |= nonzero(x[m * p.F + j]);
    }
    int64_t count = 0;
    for (int64_t j = 0; j < p.F; ++j) {  // without a branch: zeros come in no order that could be predicted
      p.rows[count] = int32_t(j);
      count += mask[j];
    }
    *p.count = count;
    for (int64_t i = 0; i < count; i += kAxpyRows) {
      const int64_t n = count - i < kAxpyRows ? count - i : kAxpyRows;
      for (int64_t m = 0; m < p.M; ++m) {
        T values[kAxpyRows] = {};
        for (int64_t r = 0; r < n; ++r) values[r] = x[m * p.F + p.rows[i + r]];
        const int64_t out = i * p.M + m * kAxpyRows;
        if (p.h_bf16) {
          __builtin_memcpy(static_cast<bf16*>(p.h) + out, values, sizeof(bf16) * kAxpyRows);
        } else {
          store_up_to(static_cast<float*>(p.h) + out, load_up_to(values, kAxpyRows), kAxpyRows);
        }
      }
    }
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
