// A unit's products in fp32: blocks of K and V converted from any element type. Only for files compiled per instruction
// set.
#pragma once

#include "attention_unit.h"

namespace persimmon::cpu::PERSIMMON_ISA {

template <class T>
struct WideBlocks {
  // Up to this many queries, K is read where it lies (a dot product per key) instead of being transposed first, and V
  // is converted in every product instead of once.
  static constexpr int64_t kDirectRows = 4;

  const AttentionParams& p;
  const Unit& u;
  int64_t D, k_stride, v_stride;
  bool direct;
  int64_t keys = 0;
  const T *k = nullptr, *v = nullptr;

  WideBlocks(const AttentionParams& p, const Unit& u)
      : p(p),
        u(u),
        D(p.shape.D),
        k_stride(p.k.row_stride),
        v_stride(p.v.row_stride),
        direct(u.rows <= kDirectRows && D % kLanes == 0) {}

  int64_t tile_rows() const { return direct ? kDirectRows : kTileRows; }

  void load_queries(const T* q, int64_t row_stride) { load_rows(q, row_stride, u.rows, D, u.q); }

  // Keys [s, s + count) of head h.
  void load_keys(int64_t b, int64_t h, int64_t s, int64_t count) {
    k = row_of<T>(p.k, b, h, s), v = row_of<T>(p.v, b, h, s), keys = count;
    if (direct) return;
    load_transposed(k, k_stride, keys, D, u.k);
    load_rows(v, v_stride, keys, D, u.v);
  }

  // u.scores = q K^T for queries [r, r + n).
  void score(int64_t r, int64_t n) {
    const float* q = u.q + r * padded(D);
    if (direct) return dot_scores(q, padded(D), k, k_stride, n, keys, D, u.scores);
    score_product(BlockA<float>{q, padded(D), 1}, u.k, n, D, u.scores);
  }

  // u.out += p V for queries [r, r + n), over the keys that each has seen.
  template <class Seen>
  void accumulate(int64_t r, int64_t n, Seen&& seen) {
    const auto begin = [](int64_t) -> int64_t { return 0; };
    const auto end = [&](int64_t i) { return seen(r + i); };
    const int64_t P = padded(D);
    const BlockA<float> weights{u.scores, kKeyBlock, 1};
    if (direct) {
      ragged_product(weights, BlockB{v, v_stride}, u.out + r * P, P, n, D, begin, end);
    } else {
      ragged_product(weights, BlockB<float>{u.v, P}, u.out + r * P, P, n, P, begin, end);
    }
  }
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
