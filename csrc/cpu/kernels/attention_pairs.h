// A unit's products in pairs of bf16, twice as fast as in fp32: pairs of q and k along D, pairs of p and v along the
// keys. Only for files compiled per instruction set.
#pragma once

#include "attention_unit.h"

#if defined(__AVX512BF16__)
namespace persimmon::cpu::PERSIMMON_ISA {

// Rows 2 k and 2 k + 1 of a block of V where it lies, paired as they are loaded.
struct RowPairs {
  const bf16* data;
  int64_t row_stride;

  __m512bh vector(int64_t k, int64_t j) const {
    const bf16* row = data + 2 * k * row_stride + j;
    return interleave(row, row + row_stride);
  }
  RowPairs from(int64_t k) const { return {data + 2 * k * row_stride, row_stride}; }
};

struct PairBlocks {
  // Up to this many queries, K is read where it lies (a dot product per key) instead of being transposed first, and V
  // is paired in every product instead of once.
  static constexpr int64_t kDirectRows = kMaxTileRows;

  const AttentionParams& p;
  const Unit& u;
  int64_t D, k_stride, v_stride;
  bool direct;
  int64_t keys = 0;
  const bf16 *k = nullptr, *v = nullptr;

  PairBlocks(const AttentionParams& p, const Unit& u)
      : p(p), u(u), D(p.shape.D), k_stride(p.k.row_stride), v_stride(p.v.row_stride), direct(u.rows <= kDirectRows) {}

  // Whether whole vectors of pairs cover the rows.
  static bool fits(const AttentionParams& p) { return p.shape.D % (2 * kLanes) == 0 && p.k.row_stride % 2 == 0; }

  int64_t tile_rows() const { return direct ? kDirectRows : kTileRows; }

  void load_queries(const bf16* q, int64_t row_stride) {
    for (int64_t r = 0; r < u.rows; ++r) __builtin_memcpy(u.q + r * D / 2, q + r * row_stride, sizeof(bf16) * D);
  }

  // Keys [s, s + count) of head h.
  void load_keys(int64_t b, int64_t h, int64_t s, int64_t count) {
    k = row_of<bf16>(p.k, b, h, s), v = row_of<bf16>(p.v, b, h, s), keys = count;
    if (direct) return;
    load_transposed(pairs(k), k_stride / 2, keys, D / 2, u.k);
    pair_rows(v, v_stride, keys, D, u.v);
  }

  void score(int64_t r, int64_t n) {
    const bf16_pair* q = pairs(u.q) + r * D / 2;
    if (direct) return dot_scores(q, D / 2, pairs(k), k_stride / 2, n, keys, D / 2, u.scores);
    score_product(BlockA{q, D / 2, 1}, pairs(u.k), n, D / 2, u.scores);
  }

  template <class Seen>
  void accumulate(int64_t r, int64_t n, Seen&& seen) {
    for (int64_t i = 0; i < n; ++i)
      to_pairs(u.scores + i * kKeyBlock, seen(r + i), u.probabilities + i * kKeyBlock / 2);
    const auto begin = [](int64_t) -> int64_t { return 0; };
    const auto end = [&](int64_t i) { return seen(r + i) / 2; };
    const BlockA<bf16_pair> weights{pairs(u.probabilities), kKeyBlock / 2, 1};
    float* out = u.out + r * D;
    if (direct) {
      ragged_product(weights, RowPairs{v, v_stride}, out, D, n, D, begin, end);
    } else {
      ragged_product(weights, BlockB{pairs(u.v), D}, out, D, n, D, begin, end);
    }
    for (int64_t i = 0; i < n; ++i) {  // an odd last key alone: what would be its partner may hold anything
      const int64_t last = seen(r + i) - 1;
      if (last >= 0 && last % 2 == 0) add_row(u.scores[i * kKeyBlock + last], v + last * v_stride, out + i * D, D);
    }
  }
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
#endif
