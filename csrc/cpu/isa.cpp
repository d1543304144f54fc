#include "isa.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace persimmon::cpu {

const char* name(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

bool supported(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    case Isa::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
}

static Isa choose() {
  const char* forced = std::getenv("PERSIMMON_EXT_ISA");
  if (forced == nullptr || *forced == '\0') {
    Isa best = Isa::portable;
    for (Isa candidate : kIsas) {
      if (supported(candidate)) best = candidate;
    }
    return best;
  }
  std::string known;
  for (Isa candidate : kIsas) {
    if (std::strcmp(forced, name(candidate)) == 0) {
      TORCH_CHECK_VALUE(supported(candidate), "PERSIMMON_EXT_ISA is ", forced, ", which this processor does not have.");
      return candidate;
    }
    known += std::string(known.empty() ? "" : ", ") + name(candidate);
  }
  TORCH_CHECK_VALUE(false, "PERSIMMON_EXT_ISA is ", forced, "; it must be one of ", known, ".");
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace persimmon::cpu
