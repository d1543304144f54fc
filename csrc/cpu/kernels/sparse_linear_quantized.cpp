#include "axpy.h"
#include "linear.h"
#include "sparse_linear.h"

namespace persimmon::cpu::PERSIMMON_ISA {

struct Int4Columns {
  using H = float;
  const uint8_t* packed;  // [F, C/2]
  const float* scale;     // [F, C/64]
  int64_t M, C;

  template <int R>
  PERSIMMON_INLINE void accumulate(const vf (&v)[R], const float* h, float* sum, int64_t M) {
    for (int64_t m = 0; m < M; ++m, sum += kSumColumns) {
      vf total = load(sum);
      for (int r = 0; r < R; ++r) total += v[r] * h[m * kAxpyRows + r];
      store(sum, total);
    }
  }

  template <int R>
  void add(const int32_t* rows, const float* h, float* sums) const {
    constexpr int kGroupBytes = kInt4Group / 2;
    const int64_t groups = C / kInt4Group;
    const uint8_t* bytes_of[R];
    const float* scale_of[R];
    for (int r = 0; r < R; ++r) {
      bytes_of[r] = packed + rows[r] * groups * kGroupBytes;
      scale_of[r] = scale + rows[r] * groups;
    }
    for (int64_t g = 0; g < groups; ++g) {
      for (int i = 0; i < kGroupBytes; i += kLanes) {
        vf low[R], high[R];
        for (int r = 0; r < R; ++r) {
          const vi bytes = load_bytes(bytes_of[r] + g * kGroupBytes + i);
          low[r] = int4_values(bytes) * scale_of[r][g];
          high[r] = int4_values(bytes >> 4) * scale_of[r][g];
        }
        float* sum = sum_at(sums, M, g * kInt4Group) + i;
        accumulate(low, h, sum, M);
        accumulate(high, h, sum + kGroupBytes, M);
      }
    }
  }

  void prefetch(int64_t row) const { prefetch_bytes(packed + row * (C / 2), C / 2); }
  void finish(float*) const {}
};

void sparse_linear_int8(const SparseLinearParams& p, int64_t begin, int64_t end) {
  axpy(WideColumns<int8_t>{static_cast<const int8_t*>(p.weight), p.M, p.C}, p, begin, end);
}

void sparse_linear_int4(const SparseLinearParams& p, int64_t begin, int64_t end) {
  axpy(Int4Columns{static_cast<const uint8_t*>(p.weight), p.scale, p.M, p.C}, p, begin, end);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
