// The products of attention's gradient in pairs of bf16, twice as fast as in fp32: those of the scores are exact, the
// others round probabilities and score gradients to bf16 first. Only for files compiled per instruction set.
#pragma once

#include "attention_gradient.h"

#if defined(__AVX512BF16__)
namespace persimmon::cpu::PERSIMMON_ISA {

struct PairGradients {
  const AttentionBackwardParams& p;
  const GradientScratch& g;
  int64_t b, h;

  // Whether whole vectors of pairs cover the rows. D is then a multiple of 32 and equals padded(D), so that rows of dq,
  // dk and dv lie as far apart here as where they are read.
  static bool fits(const AttentionBackwardParams& p) {
    const int64_t odd_strides = (p.q.row_stride | p.k.row_stride | p.v.row_stride | p.dout.row_stride) % 2;
    return p.shape.D % (2 * kLanes) == 0 && odd_strides == 0;
  }

  void load_keys(int64_t s, int64_t keys) const {
    const int64_t D = p.shape.D;
    load_transposed(pairs(row_of<bf16>(p.k, b, h, s)), p.k.row_stride / 2, keys, D / 2, g.k_transposed);
    load_transposed(pairs(row_of<bf16>(p.v, b, h, s)), p.v.row_stride / 2, keys, D / 2, g.v_transposed);
  }
  void load_key_rows(int64_t s, int64_t keys) const {
    pair_rows(row_of<bf16>(p.k, b, h, s), p.k.row_stride, keys, p.shape.D, g.k);
  }

  void score(const Tile& tile) const {
    const auto product = [&](const Rows& rows, const float* transposed, float* c) {
      const BlockA<bf16_pair> a{pairs(row_of<bf16>(rows, b, h, tile.t)), rows.row_stride / 2, 1};
      score_product(a, pairs(transposed), tile.rows, p.shape.D / 2, c);
    };
    product(p.q, g.k_transposed, g.probabilities);
    product(p.dout, g.v_transposed, g.score_gradient);
  }

  void accumulate(const Tile& tile, float* dq) const {
    bf16* rounded = reinterpret_cast<bf16*>(g.rounded);  // [rows, kKeyBlock], and behind it pairs along the rows
    round_rows(g.score_gradient, tile.rows, rounded);
    add_by_query(tile, pairs(rounded), dq);
    add_by_key(tile, g.score_gradient, rounded, p.q, g.q, g.dk);
    round_rows(g.probabilities, tile.rows, rounded);
    add_by_key(tile, g.probabilities, rounded, p.dout, g.dout, g.dv);
  }

 private:
  static void round_rows(const float* x, int64_t rows, bf16* y) { to_pairs(x, rows * kKeyBlock, y); }

  // dq += dscores K. A row without a partner is added alone, here and below: what would be that may hold anything.
  void add_by_query(const Tile& tile, const bf16_pair* dscores, float* dq) const {
    const int64_t D = p.shape.D;
    const auto begin = [](int64_t) -> int64_t { return 0; };
    const auto end = [&](int64_t r) { return tile.seen(r) / 2; };
    ragged_product(BlockA<bf16_pair>{dscores, kKeyBlock / 2, 1}, BlockB<bf16_pair>{pairs(g.k), D}, dq, D, tile.rows, D,
                   begin, end);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t last = tile.seen(r) - 1;
      if (last < 0 || last % 2 != 0) continue;
      add_row(g.score_gradient[r * kKeyBlock + last], row_of<bf16>(p.k, b, h, tile.s + last), dq + r * D, D);
    }
  }

  // c [keys, D] += x^T rows, for x [rows, kKeyBlock] and the tile's rows of q or dout.
  void add_by_key(const Tile& tile, const float* x, const bf16* rounded, const Rows& rows, float* row_pairs,
                  float* c) const {
    const int64_t D = p.shape.D;
    float* x_pairs = g.rounded + kKeyBlock * kKeyBlock / 2;
    pair_rows(row_of<bf16>(rows, b, h, tile.t), rows.row_stride, tile.rows, D, row_pairs);
    pair_rows(rounded, kKeyBlock, tile.rows, kKeyBlock, x_pairs);
    const auto begin = [&](int64_t j) { return (tile.first_query(j) + 1) / 2; };
    const auto end = [&](int64_t) { return tile.rows / 2; };
    ragged_product(BlockA<bf16_pair>{pairs(x_pairs), 1, kKeyBlock}, BlockB<bf16_pair>{pairs(row_pairs), D}, c, D,
                   tile.keys, D, begin, end);
    for (int64_t j = 0; j < tile.keys; ++j) {
      const int64_t first = tile.first_query(j), last = tile.rows - 1;
      const auto add = [&](int64_t r) {
        add_row(x[r * kKeyBlock + j], row_of<bf16>(rows, b, h, tile.t + r), c + j * D, D);
      };
      if (first % 2 == 1 && first < tile.rows) add(first);
      if (last % 2 == 0 && first <= last) add(last);
    }
  }
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
#endif
