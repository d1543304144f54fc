// Warp-wide functions of CUDA under g++.
#pragma once
#include <bit>

#include "runtime.h"

namespace simt {

struct ShuffleArgument {
  uint64_t value;  // in: the lane's value; out: the source lane's
  int source;
};

inline void execute_shuffle(uint32_t mask, void* const (&arguments)[32]) {
  uint64_t values[32];
  for (int lane = 0; lane < 32; ++lane) {
    const bool member = mask >> lane & 1u;
    values[lane] = member ? static_cast<ShuffleArgument*>(arguments[lane])->value : ~uint64_t{0};  // absent lane: NaN
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    auto* argument = static_cast<ShuffleArgument*>(arguments[lane]);
    argument->value = values[argument->source & 31];
  }
}

// Which lanes gave the same value as this one.
struct MatchArgument {
  uint64_t value;
  uint32_t lanes;
};

inline void execute_match(uint32_t mask, void* const (&arguments)[32]) {
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    auto* argument = static_cast<MatchArgument*>(arguments[std::countr_zero(rest)]);
    argument->lanes = 0;
    for (uint32_t others = mask; others != 0; others &= others - 1) {
      const int lane = std::countr_zero(others);
      if (static_cast<MatchArgument*>(arguments[lane])->value == argument->value) argument->lanes |= 1u << lane;
    }
  }
}

inline constexpr Collective kSyncWarp{"__syncwarp", true, [](uint32_t, void* const (&)[32]) {}};
inline constexpr Collective kShuffle{"shuffle", false, execute_shuffle};
inline constexpr Collective kMatch{"match", false, execute_match};
inline constexpr Collective kVote{"vote", false, execute_match};

template <class T>
T shuffle(uint32_t mask, T value, int source, const Where& where) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  ShuffleArgument argument{0, source};
  std::memcpy(&argument.value, &value, sizeof(T));
  warp_collective(mask, kShuffle, &argument, where);
  std::memcpy(&value, &argument.value, sizeof(T));
  return value;
}

// The lanes of `mask` where `predicate` holds.
inline uint32_t vote(uint32_t mask, bool predicate, const Where& where) {
  MatchArgument argument{predicate, 0};
  warp_collective(mask, kVote, &argument, where);
  return predicate ? argument.lanes : mask & ~argument.lanes;
}

}  // namespace simt

inline void __syncwarp(uint32_t mask = ~0u, const simt::Where& where = simt::Where::current()) {
  simt::warp_collective(mask, simt::kSyncWarp, nullptr, where);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, const simt::Where& where = simt::Where::current()) {
  return simt::shuffle(mask, value, source, where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, const simt::Where& where = simt::Where::current()) {
  return simt::shuffle(mask, value, simt::current_thread().lane ^ lane_mask, where);
}
// A lane without a partner keeps its own value.
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, const simt::Where& where = simt::Where::current()) {
  const int lane = simt::current_thread().lane, source = lane - static_cast<int>(delta);
  return simt::shuffle(mask, value, source >= 0 ? source : lane, where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, const simt::Where& where = simt::Where::current()) {
  const int lane = simt::current_thread().lane, source = lane + static_cast<int>(delta);
  return simt::shuffle(mask, value, source < 32 ? source : lane, where);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, const simt::Where& where = simt::Where::current()) {
  return simt::vote(mask, predicate != 0, where);
}
inline int __any_sync(uint32_t mask, int predicate, const simt::Where& where = simt::Where::current()) {
  return simt::vote(mask, predicate != 0, where) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, const simt::Where& where = simt::Where::current()) {
  return simt::vote(mask, predicate != 0, where) == mask;
}
template <class T>
uint32_t __match_any_sync(uint32_t mask, T value, const simt::Where& where = simt::Where::current()) {
  simt::MatchArgument argument{0, 0};
  std::memcpy(&argument.value, &value, sizeof(T));
  simt::warp_collective(mask, simt::kMatch, &argument, where);
  return argument.lanes;
}
inline int __popc(uint32_t value) { return std::popcount(value); }
inline int __ffs(int value) { return value == 0 ? 0 : std::countr_zero(static_cast<uint32_t>(value)) + 1; }
inline int __clz(int value) { return std::countl_zero(static_cast<uint32_t>(value)); }
