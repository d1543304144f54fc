#include "attention.h"

#include "attention_blocks.h"
#include "block_product.h"

namespace persimmon::cpu::PERSIMMON_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// Up to this many queries, K is read where it lies (a dot product per key) instead of being transposed first, and V is
// converted in every product instead of once.
constexpr int64_t kDirectRows = 4;

// The part of the scratch that one unit works in; the queries are `rows` consecutive ones from `first`.
struct Unit {
  float *q, *out;            // [rows, padded(D)]
  float* scores;             // [rows, kKeyBlock], then probabilities
  float* keys;               // [D, kKeyBlock] K^T, then [kKeyBlock, padded(D)] V
  float *max, *sum, *scale;  // [rows]: running maximum and sum, factor of the previous output
  int64_t first, rows;
};

// scores = q K^T for up to kDirectRows queries: kLanes keys at a time, one sum for each, transposed while reduced.
template <class T>
void direct_scores(const Unit& u, const T* k, int64_t row_stride, int64_t keys, int64_t D) {
  for (int64_t r = 0; r < u.rows; ++r) {
    const float* q = u.q + r * padded(D);
    int64_t s = 0;
    for (; s + kLanes <= keys; s += kLanes) {
      vf sums[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) sums[j] = load(q) * load(k + (s + j) * row_stride);
      for (int64_t i = kLanes; i < D; i += kLanes) {
        const vf qi = load(q + i);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) sums[j] += qi * load(k + (s + j) * row_stride + i);
      }
      store(u.scores + r * kKeyBlock + s, reduce_add_each(sums));
    }
    for (; s < keys; ++s) {
      vf sum{};
      for (int64_t i = 0; i < D; i += kLanes) sum += load(q + i) * load(k + s * row_stride + i);
      u.scores[r * kKeyBlock + s] = reduce_add(sum);
    }
  }
}

// Turns a row of scores into exp(scale * score - maximum), zero from `visible` on, and updates maximum and sum.
PERSIMMON_INLINE void softmax_row(const Unit& u, int64_t r, int64_t visible, float scale) {
  float* row = u.scores + r * kKeyBlock;
  const auto scaled = [&](int64_t i) {
    return lane_numbers() < float(visible - i) ? load(row + i) * scale : broadcast(-kInfinity);
  };
  const int64_t end = (visible + kLanes - 1) / kLanes * kLanes;
  vf highest = broadcast(u.max[r]);
  for (int64_t i = 0; i < end; i += kLanes) highest = vmax(scaled(i), highest);
  const float next = reduce_max(highest);
  const float shift = next == -kInfinity ? 0.f : next;  // all scores -inf so far: exp must give 0, not NaN
  vf total{};
  for (int64_t i = 0; i < end; i += kLanes) {
    const vf p = vexp(scaled(i) - shift);
    store(row + i, p);
    total += p;
  }
  u.scale[r] = vexp(broadcast(u.max[r] - shift))[0];
  u.sum[r] = u.sum[r] * u.scale[r] + reduce_add(total);
  u.max[r] = next;
}

// Online softmax over keys [begin, end): leaves the unnormalised output, maximum and sum in the unit.
template <class T>
void attend(const AttentionParams& p, const Unit& u, int64_t b, int64_t h, const Visible& visible, int64_t begin,
            int64_t end) {
  const int64_t D = p.shape.D, P = padded(D);
  load_rows(row_of<T>(p.q, b, h, u.first), p.q.row_stride, u.rows, D, u.q);
  fill_zero(u.out, u.rows * P);
  for (int64_t r = 0; r < u.rows; ++r) u.max[r] = -kInfinity, u.sum[r] = 0;
  const bool direct = u.rows <= kDirectRows && D % kLanes == 0;
  for (int64_t s = begin; s < end; s += kKeyBlock) {
    const int64_t keys = min_of(kKeyBlock, end - s);
    const T* k = row_of<T>(p.k, b, h, s);
    if (direct) {
      direct_scores(u, k, p.k.row_stride, keys, D);
    } else {
      load_transposed(k, p.k.row_stride, keys, D, u.keys);
      fill_zero(u.scores, u.rows * kKeyBlock);
      block_product(BlockA{u.q, P, 1}, u.keys, kKeyBlock, u.scores, kKeyBlock, u.rows, kKeyBlock, D);
    }
    const auto seen = [&](int64_t r) { return min_of(max_of(visible.end(u.first + r) - s, 0), keys); };
    for (int64_t r = 0; r < u.rows; ++r) {
      if (seen(r) == 0) continue;
      softmax_row(u, r, seen(r), p.shape.scale);
      for (int64_t i = 0; i < P; i += kLanes) store(u.out + r * P + i, load(u.out + r * P + i) * u.scale[r]);
    }
    const auto from = [](int64_t) -> int64_t { return 0; };
    const T* v = row_of<T>(p.v, b, h, s);
    if (direct) {
      ragged_product(BlockA{u.scores, kKeyBlock, 1}, v, p.v.row_stride, u.out, P, u.rows, D, from, seen);
    } else {
      load_rows(v, p.v.row_stride, keys, D, u.keys);
      ragged_product(BlockA{u.scores, kKeyBlock, 1}, u.keys, P, u.out, P, u.rows, P, from, seen);
    }
  }
}

// Writes a query's output and log-sum-exp: `out` times `factor`.
template <class T>
PERSIMMON_INLINE void store_query(const AttentionParams& p, int64_t bh, int64_t t, const float* out, float factor,
                                  float lse) {
  const int64_t D = p.shape.D, b = bh / p.shape.H, h = bh % p.shape.H;
  T* y = static_cast<T*>(p.out) + ((b * p.shape.T + t) * p.shape.H + h) * D;
  for_each_vector(D, [&](int64_t i, int count) { store_up_to(y + i, load_up_to(out + i, count) * factor, count); });
  p.lse[bh * p.shape.T + t] = lse;
}

}  // namespace

void attention(const AttentionParams& p, int64_t begin, int64_t end) {
  const AttentionShape& shape = p.shape;
  const int64_t D = shape.D, P = padded(D), blocks = query_blocks(shape.T);
  Unit u;
  u.q = p.scratch;
  u.out = u.q + kQueryBlock * P;
  u.scores = u.out + kQueryBlock * P;
  u.keys = u.scores + kQueryBlock * kKeyBlock;
  u.max = u.keys + kKeyBlock * P;
  u.sum = u.max + kQueryBlock;
  u.scale = u.sum + kQueryBlock;
  with_type(shape.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t split = unit % p.splits, bh = unit / p.splits / blocks, b = bh / shape.H;
      // Late blocks see more keys: taking them alternately from both ends balances contiguous ranges of units.
      const int64_t i = unit / p.splits % blocks;
      u.first = (i % 2 == 0 ? i / 2 : blocks - 1 - i / 2) * kQueryBlock;
      u.rows = min_of(kQueryBlock, shape.T - u.first);
      const Visible visible = Visible::of(shape, b);
      const int64_t last = max_of(visible.end(u.first + u.rows - 1), visible.begin);
      const int64_t span = (last - visible.begin + p.splits * kKeyBlock - 1) / (p.splits * kKeyBlock) * kKeyBlock;
      const int64_t from = min_of(visible.begin + split * span, last);
      attend<T>(p, u, b, bh % shape.H, visible, from, min_of(from + span, last));
      for (int64_t r = 0; r < u.rows; ++r) {
        const float factor = u.sum[r] == 0 ? 0.f : 1.f / u.sum[r];
        const float lse = u.sum[r] == 0 ? -kInfinity : u.max[r] + __builtin_logf(u.sum[r]);
        if (p.splits == 1) {
          store_query<T>(p, bh, u.first + r, u.out + r * P, factor, lse);
        } else {
          float* partial = p.partials + ((split * shape.B * shape.H + bh) * shape.T + u.first + r) * (1 + D);
          partial[0] = lse;
          for (int64_t d = 0; d < D; ++d) partial[1 + d] = u.out[r * P + d] * factor;
        }
      }
    }
  });
}

// With the splits' log-sum-exps l and outputs o:  lse = log(sum exp(l));  out = sum exp(l - lse) o.
void attention_combine(const AttentionParams& p, int64_t begin, int64_t end) {
  const int64_t D = p.shape.D, rows = p.shape.B * p.shape.H * p.shape.T;
  with_type(p.shape.dtype, [&](auto tag) {
    for (int64_t row = begin; row < end; ++row) {
      const auto partial = [&](int64_t split) { return p.partials + (split * rows + row) * (1 + D); };
      float highest = -kInfinity;
      for (int64_t i = 0; i < p.splits; ++i) highest = partial(i)[0] > highest ? partial(i)[0] : highest;
      const float shift = highest == -kInfinity ? 0.f : highest;
      float* out = p.scratch;
      float total = 0;
      fill_zero(out, padded(D));
      for (int64_t i = 0; i < p.splits; ++i) {
        const float weight = vexp(broadcast(partial(i)[0] - shift))[0];
        if (weight == 0) continue;
        total += weight;
        for_each_vector(
            D, [&](int64_t d, int n) { store(out + d, load(out + d) + load_up_to(partial(i) + 1 + d, n) * weight); });
      }
      const float lse = total == 0 ? -kInfinity : shift + __builtin_logf(total);
      store_query<decltype(tag)>(p, row / p.shape.T, row % p.shape.T, out, total == 0 ? 0.f : 1.f / total, lse);
    }
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
