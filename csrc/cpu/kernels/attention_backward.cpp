#include "attention_blocks.h"
#include "block_product.h"

namespace persimmon::cpu::PERSIMMON_ISA {
namespace {

// The part of the scratch that one (b, h) works in; blocks of queries are as long as blocks of keys.
struct GradientBlocks {
  float *q, *dout;                        // [rows, padded(D)]
  float *k, *k_transposed;                // [keys, padded(D)], [D, kKeyBlock]
  float* v_transposed;                    // [D, kKeyBlock]
  float *dk, *dv;                         // [keys, padded(D)]
  float *probabilities, *score_gradient;  // [rows, kKeyBlock]
  float* delta;                           // [T]: sum over D of dout * out

  GradientBlocks(float* scratch, int64_t P) {
    for (float** block : {&q, &dout, &k, &k_transposed, &v_transposed, &dk, &dv}) {
      *block = scratch;
      scratch += kKeyBlock * P;
    }
    probabilities = scratch;
    score_gradient = probabilities + kKeyBlock * kKeyBlock;
    delta = score_gradient + kKeyBlock * kKeyBlock;
  }
};

// A block of queries [t, t + rows) against a block of keys [s, s + keys).
struct Tile {
  int64_t t, rows, s, keys;
  Visible visible;

  // How many keys of the block query t + r sees, and the first query that sees key s + j, as a row of the tile.
  int64_t seen(int64_t r) const { return min_of(max_of(visible.end(t + r) - s, 0), keys); }
  int64_t first_query(int64_t j) const { return min_of(max_of(s + j - visible.offset - t, 0), rows); }
};

// Fills probabilities with exp(scale * q K^T - lse), zero where not visible, and score_gradient with dout V^T.
template <class T>
void load_tile(const AttentionBackwardParams& p, const GradientBlocks& g, int64_t bh, const Tile& tile) {
  const int64_t D = p.shape.D, P = padded(D), b = bh / p.shape.H, h = bh % p.shape.H;
  load_rows(row_of<T>(p.q, b, h, tile.t), p.q.row_stride, tile.rows, D, g.q);
  load_rows(row_of<T>(p.dout, b, h, tile.t), p.dout.row_stride, tile.rows, D, g.dout);
  const auto product = [&](const float* a, const float* b, float* c) {
    fill_zero(c, tile.rows * kKeyBlock);
    block_product(BlockA{a, P, 1}, BlockB{b, kKeyBlock}, c, kKeyBlock, tile.rows, kKeyBlock, D);
  };
  product(g.q, g.k_transposed, g.probabilities);
  product(g.dout, g.v_transposed, g.score_gradient);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float lse = p.lse[bh * p.shape.T + tile.t + r];
    for (int64_t i = 0; i < kKeyBlock; i += kLanes) {
      float* probability = g.probabilities + r * kKeyBlock + i;
      const vi visible = lane_numbers() < float(tile.seen(r) - i);
      store(probability, visible ? vexp(load(probability) * p.shape.scale - lse) : vf{});
    }
  }
}

// delta += row sums of probabilities * dprobabilities.
void add_row_sums(const GradientBlocks& g, const Tile& tile) {
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

// Adds the tile's part of dq, dk and dv, with dscore = probability * (dprobability - delta) * scale.
void add_gradients(const AttentionBackwardParams& p, const GradientBlocks& g, int64_t bh, const Tile& tile) {
  const int64_t P = padded(p.shape.D);
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t i = 0; i < kKeyBlock; i += kLanes) {
      float* gradient = g.score_gradient + r * kKeyBlock + i;
      const vi visible = lane_numbers() < float(tile.seen(r) - i);
      const vf centred = (load(gradient) - g.delta[tile.t + r]) * p.shape.scale;
      store(gradient, visible ? load(g.probabilities + r * kKeyBlock + i) * centred : vf{});
    }
  }
  const auto zero = [](int64_t) -> int64_t { return 0; };
  const auto seen = [&](int64_t r) { return tile.seen(r); };
  const auto first_query = [&](int64_t j) { return tile.first_query(j); };
  const auto all = [&](int64_t) { return tile.rows; };
  float* dq = p.dq + (bh * p.shape.T + tile.t) * P;
  ragged_product(BlockA{g.score_gradient, kKeyBlock, 1}, BlockB{g.k, P}, dq, P, tile.rows, P, zero, seen);
  ragged_product(BlockA{g.score_gradient, 1, kKeyBlock}, BlockB{g.q, P}, g.dk, P, tile.keys, P, first_query, all);
  ragged_product(BlockA{g.probabilities, 1, kKeyBlock}, BlockB{g.dout, P}, g.dv, P, tile.keys, P, first_query, all);
}

// delta = sum over D of dout * out, the row sums of probabilities * dprobabilities. Where `out` was rounded to 16 bits
// that product is too coarse, so the sums are taken over the keys, in an earlier walk through the tiles.
template <class T>
void row_sums(const AttentionBackwardParams& p, const GradientBlocks& g, int64_t b, int64_t h) {
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
template <class T>
void head_backward(const AttentionBackwardParams& p, const GradientBlocks& g, int64_t bh) {
  const AttentionShape& shape = p.shape;
  const int64_t D = shape.D, P = padded(D), b = bh / shape.H, h = bh % shape.H;
  const Visible visible = Visible::of(shape, b);
  const int64_t last = shape.T == 0 ? visible.begin : max_of(visible.end(shape.T - 1), visible.begin);
  T* dk = static_cast<T*>(p.dk) + bh * shape.S * D;
  T* dv = static_cast<T*>(p.dv) + bh * shape.S * D;
  for (T* gradient : {dk, dv}) {  // of keys that no query sees
    __builtin_memset(gradient, 0, sizeof(T) * visible.begin * D);
    __builtin_memset(gradient + last * D, 0, sizeof(T) * (shape.S - last) * D);
  }
  const auto load_keys = [&](int64_t s, int64_t keys) {
    load_transposed(row_of<T>(p.k, b, h, s), p.k.row_stride, keys, D, g.k_transposed);
    load_transposed(row_of<T>(p.v, b, h, s), p.v.row_stride, keys, D, g.v_transposed);
  };
  if constexpr (sizeof(T) == sizeof(float)) {
    row_sums<T>(p, g, b, h);
  } else {
    fill_zero(g.delta, shape.T);
    for (int64_t s = visible.begin; s < last; s += kKeyBlock) {
      const int64_t keys = min_of(kKeyBlock, last - s);
      load_keys(s, keys);
      for_each_tile(shape, visible, s, keys, [&](const Tile& tile) {
        load_tile<T>(p, g, bh, tile);
        add_row_sums(g, tile);
      });
    }
  }
  for (int64_t s = visible.begin; s < last; s += kKeyBlock) {
    const int64_t keys = min_of(kKeyBlock, last - s);
    load_keys(s, keys);
    load_rows(row_of<T>(p.k, b, h, s), p.k.row_stride, keys, D, g.k);
    fill_zero(g.dk, keys * P);
    fill_zero(g.dv, keys * P);
    for_each_tile(shape, visible, s, keys, [&](const Tile& tile) {
      load_tile<T>(p, g, bh, tile);
      add_gradients(p, g, bh, tile);
    });
    for (int64_t j = 0; j < keys; ++j) {
      for_each_vector(D, [&](int64_t i, int n) {
        store_up_to(dk + (s + j) * D + i, load(g.dk + j * P + i), n);
        store_up_to(dv + (s + j) * D + i, load(g.dv + j * P + i), n);
      });
    }
  }
}

}  // namespace

void attention_backward(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  const GradientBlocks g(p.scratch, padded(p.shape.D));
  with_type(p.shape.dtype, [&](auto tag) {
    for (int64_t bh = begin; bh < end; ++bh) head_backward<decltype(tag)>(p, g, bh);
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
