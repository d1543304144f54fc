// The products of attention's gradient in fp32: blocks converted from any element type. Only for files compiled per
// instruction set.
#pragma once

#include "attention_gradient.h"

namespace persimmon::cpu::PERSIMMON_ISA {

template <class T>
struct WideGradients {
  const AttentionBackwardParams& p;
  const GradientScratch& g;
  int64_t b, h;

  // Keys [s, s + keys) for `score`, and for `accumulate`.
  void load_keys(int64_t s, int64_t keys) const {
    load_transposed(row_of<T>(p.k, b, h, s), p.k.row_stride, keys, p.shape.D, g.k_transposed);
    load_transposed(row_of<T>(p.v, b, h, s), p.v.row_stride, keys, p.shape.D, g.v_transposed);
  }
  void load_key_rows(int64_t s, int64_t keys) const {
    load_rows(row_of<T>(p.k, b, h, s), p.k.row_stride, keys, p.shape.D, g.k);
  }

  // probabilities = q K^T, score_gradient = dout V^T.
  void score(const Tile& tile) const {
    const int64_t D = p.shape.D, P = padded(D);
    load_rows(row_of<T>(p.q, b, h, tile.t), p.q.row_stride, tile.rows, D, g.q);
    load_rows(row_of<T>(p.dout, b, h, tile.t), p.dout.row_stride, tile.rows, D, g.dout);
    score_product(BlockA<float>{g.q, P, 1}, g.k_transposed, tile.rows, D, g.probabilities);
    score_product(BlockA<float>{g.dout, P, 1}, g.v_transposed, tile.rows, D, g.score_gradient);
  }

  // dq += dscores K, dk += dscores^T q, dv += probabilities^T dout.
  void accumulate(const Tile& tile, float* dq) const {
    const int64_t P = padded(p.shape.D);
    const auto zero = [](int64_t) -> int64_t { return 0; };
    const auto seen = [&](int64_t r) { return tile.seen(r); };
    const auto first_query = [&](int64_t j) { return tile.first_query(j); };
    const auto all = [&](int64_t) { return tile.rows; };
    const auto by_key = [&](const float* a) { return BlockA<float>{a, 1, kKeyBlock}; };
    ragged_product(BlockA<float>{g.score_gradient, kKeyBlock, 1}, BlockB<float>{g.k, P}, dq, P, tile.rows, P, zero,
                   seen);
    ragged_product(by_key(g.score_gradient), BlockB<float>{g.q, P}, g.dk, P, tile.keys, P, first_query, all);
    ragged_product(by_key(g.probabilities), BlockB<float>{g.dout, P}, g.dv, P, tile.keys, P, first_query, all);
  }
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
