#include "linear.h"
#include "matvec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

struct Int8Weights {
  using X = float;
  WideWeights<int8_t> codes;
  const float* scale;  // [N]

  template <int R, int M>
  void dot(int64_t n, const float* x, float (&out)[R][M]) const {
    codes.dot(n, x, out);
    for (int r = 0; r < R; ++r) {
      for (int m = 0; m < M; ++m) out[r][m] *= scale[n + r];
    }
  }
};

void linear_int8(const LinearParams& p, int64_t begin, int64_t end) {
  matvec(Int8Weights{{static_cast<const int8_t*>(p.weight), p.K}, p.scale}, p, begin, end);
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
