// Which instruction set the CPU kernels use: the best one that the processor has, or the one named by the environment
// variable PERSIMMON_EXT_ISA (read once, at first use).
#pragma once

#include <array>

namespace persimmon::cpu {

enum class Isa { portable, avx2, avx512, avx512_bf16 };

inline constexpr std::array kIsas = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

const char* name(Isa isa);
bool supported(Isa isa);  // by this processor and operating system
Isa isa();                // in use; throws c10::ValueError for an unknown or unsupported PERSIMMON_EXT_ISA

}  // namespace persimmon::cpu
