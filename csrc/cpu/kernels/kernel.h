// What every CPU kernel header needs: element types, and the declaration of one function per instruction set.
//
// Files in this folder are compiled once per instruction set, each time with PERSIMMON_ISA naming the namespace that
// everything they define lives in. They include no torch and no inline code of the standard library: a weak symbol
// compiled with AVX-512 could otherwise be the copy that the linker keeps for the whole process.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace persimmon::cpu {

enum class DType { f32, bf16, f16 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

}  // namespace persimmon::cpu

// Declares `void name(const Params&, int64_t begin, int64_t end)` in each instruction set's namespace, and
// `name##_kernel()`, which returns the one to use. [begin, end) is the kernel's own unit of parallel work.
#define PERSIMMON_DECLARE_KERNEL(name, Params)                               \
  namespace portable {                                                       \
  void name(const Params&, int64_t, int64_t);                                \
  }                                                                          \
  namespace avx2 {                                                           \
  void name(const Params&, int64_t, int64_t);                                \
  }                                                                          \
  namespace avx512 {                                                         \
  void name(const Params&, int64_t, int64_t);                                \
  }                                                                          \
  namespace avx512_bf16 {                                                    \
  void name(const Params&, int64_t, int64_t);                                \
  }                                                                          \
  inline auto name##_kernel() -> void (*)(const Params&, int64_t, int64_t) { \
    switch (isa()) {                                                         \
      case Isa::avx512_bf16:                                                 \
        return avx512_bf16::name;                                            \
      case Isa::avx512:                                                      \
        return avx512::name;                                                 \
      case Isa::avx2:                                                        \
        return avx2::name;                                                   \
      default:                                                               \
        return portable::name;                                               \
    }                                                                        \
  }
