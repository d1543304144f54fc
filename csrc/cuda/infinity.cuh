#pragma once

namespace persimmon::cuda {

constexpr float kMinusInfinity = -__builtin_huge_valf();

}  // namespace persimmon::cuda
