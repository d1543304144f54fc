#include "attention_gradient_pairs.h"
#include "attention_gradient_wide.h"

namespace persimmon::cpu::PERSIMMON_ISA {
namespace {

// Fills probabilities with exp(scale * q K^T - lse), zero where not visible, and score_gradient with dout V^T.
template <class Gradients>
void load_tile(const AttentionBackwardParams& p, const Gradients& gradients, int64_t bh, const Tile& tile) {
  gradients.score(tile);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float lse = p.lse[bh * p.shape.T + tile.t + r];
    for (int64_t i = 0; i < kKeyBlock; i += kLanes) {
      float* probability = gradients.g.probabilities + r * kKeyBlock + i;
      const vi visible = lane_numbers() < float(tile.seen(r) - i);
      store(probability, visible ? vexp(load(probability) * p.shape.scale - lse) : vf{});
    }
  }
}

// delta += row sums of probabilities * dprobabilities.
void add_row_sums(const GradientScratch& g, const Tile& tile) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    vf sum{};
    for (int64_t i = 0; i < kKeyBlock; i += kLanes) {
      const vi visible = lane_numbers() < float(tile.seen(r) - i);
      const vf term = load(g.probabilities + r * kKeyBlock + i) * load(g.score_gradient + r * kKeyBlock + i);
      sum += visible ? term : vf{};
    }
    g.delta[tile.t + r] += reduce_add(sum);
  }
}

// score_gradient = probability * (dprobability - delta) * scale, zero where not visible.
void finish_score_gradients(const GradientScratch& g, float scale, const Tile& tile) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t i = 0; i < kKeyBlock; i += kLanes) {
      float* gradient = g.score_gradient + r * kKeyBlock + i;
      const vi visible = lane_numbers() < float(tile.seen(r) - i);
      const vf centred = (load(gradient) - g.delta[tile.t + r]) * scale;
      store(gradient, visible ? load(g.probabilities + r * kKeyBlock + i) * centred : vf{});
    }
  }
}

// delta = sum over D of dout * out, the row sums of probabilities * dprobabilities. Where `out` was rounded to 16 bits
// that product is too coarse, so the sums are taken over the keys, in an earlier walk through the tiles.
template <class T>
void row_sums(const AttentionBackwardParams& p, const GradientScratch& g, int64_t b, int64_t h) {
  for (int64_t t = 0; t < p.shape.T; ++t) {
    const T *dout = row_of<T>(p.dout, b, h, t), *out = row_of<T>(p.out, b, h, t);
    vf sum{};
    for_each_vector(p.shape.D, [&](int64_t i, int n) { sum += load_up_to(dout + i, n) * load_up_to(out + i, n); });
    g.delta[t] = reduce_add(sum);
  }
}

// Calls visit(tile) for every tile of keys [s, s + keys) with a query that sees one of them.
template <class Visit>
PERSIMMON_INLINE void for_each_tile(const AttentionShape& shape, const Visible& visible, int64_t s, int64_t keys,
                                    Visit&& visit) {
  for (int64_t t = max_of(s - visible.offset, 0); t < shape.T; t += kKeyBlock) {
    visit(Tile{t, min_of(kKeyBlock, shape.T - t), s, keys, visible});
  }
}

// One (b, h). Keys outermost, so that dk and dv of a block stay in scratch and are rounded once.
template <class T, class Gradients>
void head_backward(const AttentionBackwardParams& p, const GradientScratch& g, int64_t bh) {
  const AttentionShape& shape = p.shape;
  const int64_t D = shape.D, P = padded(D), b = bh / shape.H, h = bh % shape.H;
  const Gradients gradients{p, g, b, h};
  const Visible visible = Visible::of(shape, b);
  const int64_t last = shape.T == 0 ? visible.begin : max_of(visible.end(shape.T - 1), visible.begin);
  T* dk = static_cast<T*>(p.dk) + bh * shape.S * D;
  T* dv = static_cast<T*>(p.dv) + bh * shape.S * D;
  for (T* gradient : {dk, dv}) {  // of keys that no query sees
    __builtin_memset(gradient, 0, sizeof(T) * visible.begin * D);
    __builtin_memset(gradient + last * D, 0, sizeof(T) * (shape.S - last) * D);
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    row_sums<T>(p, g, b, h);
  } else {
    fill_zero(g.delta, shape.T);
    for (int64_t s = visible.begin; s < last; s += kKeyBlock) {
      const int64_t keys = min_of(kKeyBlock, last - s);
      gradients.load_keys(s, keys);
      for_each_tile(shape, visible, s, keys, [&](const Tile& tile) {
        load_tile(p, gradients, bh, tile);
        add_row_sums(g, tile);
      });
    }
  }
  for (int64_t s = visible.begin; s < last; s += kKeyBlock) {
    const int64_t keys = min_of(kKeyBlock, last - s);
    gradients.load_keys(s, keys);
    gradients.load_key_rows(s, keys);
    fill_zero(g.dk, keys * P);
    fill_zero(g.dv, keys * P);
    for_each_tile(shape, visible, s, keys, [&](const Tile& tile) {
      load_tile(p, gradients, bh, tile);
      finish_score_gradients(g, shape.scale, tile);
      gradients.accumulate(tile, p.dq + (bh * shape.T + tile.t) * P);
    });
    for (int64_t j = 0; j < keys; ++j) {
      for_each_vector(D, [&](int64_t i, int n) {
        store_up_to(dk + (s + j) * D + i, load(g.dk + j * P + i), n);
        store_up_to(dv + (s + j) * D + i, load(g.dv + j * P + i), n);
      });
    }
  }
}

template <class T>
void head_backward_in_blocks(const AttentionBackwardParams& p, const GradientScratch& g, int64_t bh) {
#if defined(__AVX512BF16__)
  if constexpr (__is_same(T, bf16)) {
    if (PairGradients::fits(p)) return head_backward<T, PairGradients>(p, g, bh);
  }
#endif
  head_backward<T, WideGradients<T>>(p, g, bh);
}

}  // namespace

void attention_backward(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  const GradientScratch g(p.scratch, padded(p.shape.D));
  with_type(p.shape.dtype, [&](auto tag) {
    for (int64_t bh = begin; bh < end; ++bh) head_backward_in_blocks<decltype(tag)>(p, g, bh);
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
