// A unit's products over K and V that are int8 codes with a scale for each row. Only for files compiled per instruction
// set.
#pragma once

#include "attention_unit.h"
#include "codes.h"

namespace persimmon::cpu::PERSIMMON_ISA {

struct CodeBlocks {
  // Up to this many queries, codes are read where they lie and the scales meet scores and probabilities; for more, a
  // block becomes rows of fp32 first.
  static constexpr int64_t kDirectRows = 4;

  const AttentionParams& p;
  const Unit& u;
  int64_t D, P;
  bool direct;
  int64_t keys = 0;
  const int8_t *k = nullptr, *v = nullptr;
  alignas(64) float k_scale[kKeyBlock] = {}, v_scale[kKeyBlock] = {};

  CodeBlocks(const AttentionParams& p, const Unit& u)
      : p(p), u(u), D(p.shape.D), P(padded(D)), direct(u.rows <= kDirectRows && D % kLanes == 0) {}

  int64_t tile_rows() const { return direct ? kDirectRows : kTileRows; }

  template <class T>
  void load_queries(const T* q, int64_t row_stride) {
    load_rows(q, row_stride, u.rows, D, u.q);
  }

  void load_keys(int64_t b, int64_t h, int64_t s, int64_t count) {
    k = row_of<int8_t>(p.k, b, h, s), v = row_of<int8_t>(p.v, b, h, s), keys = count;
    for (int64_t i = 0; i < keys; ++i) {
      k_scale[i] = *row_of<float>(p.k_scale, b, h, s + i);
      v_scale[i] = *row_of<float>(p.v_scale, b, h, s + i);
    }
    if (direct) return;
    load_scaled(k, p.k.row_stride, k_scale, u.k);
    load_scaled(v, p.v.row_stride, v_scale, u.v);
  }

  // u.scores = q K^T for queries [r, r + n).
  void score(int64_t r, int64_t n) {
    const float* q = u.q + r * P;
    if (!direct) return dot_scores(q, P, u.k, P, n, keys, P, u.scores);
    dot_scores(q, P, k, p.k.row_stride, n, keys, D, u.scores);
    scale_scores(n, k_scale);
  }

  // u.out += p V for queries [r, r + n), over the keys that each has seen.
  template <class Seen>
  void accumulate(int64_t r, int64_t n, Seen&& seen) {
    const auto begin = [](int64_t) -> int64_t { return 0; };
    const auto end = [&](int64_t i) { return seen(r + i); };
    const BlockA<float> weights{u.scores, kKeyBlock, 1};
    if (!direct) return ragged_product(weights, BlockB<float>{u.v, P}, u.out + r * P, P, n, P, begin, end);
    scale_scores(n, v_scale);
    ragged_product(weights, BlockB{v, p.v.row_stride}, u.out + r * P, P, n, D, begin, end);
  }

 private:
  // dst [keys, P] = codes times scales, zeros beyond D.
  void load_scaled(const int8_t* codes, int64_t row_stride, const float* scales, float* dst) const {
    load_rows(codes, row_stride, keys, D, dst);
    for (int64_t s = 0; s < keys; ++s) {
      for (float* x = dst + s * P; x < dst + (s + 1) * P; x += kLanes) store(x, load(x) * scales[s]);
    }
  }

  void scale_scores(int64_t n, const float* scales) const {
    for (int64_t i = 0; i < n; ++i) {
      float* row = u.scores + i * kKeyBlock;
      for (int64_t s = 0; s < keys; s += kLanes) store(row + s, load(row + s) * load(scales + s));
    }
  }
};

}  // namespace persimmon::cpu::PERSIMMON_ISA
