#include "attention.h"

#include "attention_codes.h"
#include "attention_pairs.h"
#include "attention_wide.h"

namespace persimmon::cpu::PERSIMMON_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// Turns a row of scores into exp(scale * score - maximum), zero from `visible` on, updates maximum and sum of query r,
// and rescales its output.
PERSIMMON_INLINE void softmax_row(const Unit& u, float* row, int64_t r, int64_t visible, float scale, int64_t P) {
  const auto scaled = [&](int64_t i) {
    const vf score = load(row + i) * scale;
    return visible - i >= kLanes ? score : lane_numbers() < float(visible - i) ? score : broadcast(-kInfinity);
  };
  const vf previous = broadcast(u.max[r]);
  vf highest = previous;
  for (int64_t i = 0; i < visible; i += kLanes) highest = vmax(scaled(i), highest);
  highest = spread_max(highest);
  const vf shift = highest == -kInfinity ? vf{} : highest;  // all scores -inf so far: exp must give 0, not NaN
  vf total{};
  for (int64_t i = 0; i < visible; i += kLanes) {
    const vf p = exp_nonpositive(scaled(i) - shift);
    store(row + i, p);
    total += p;
  }
  const vf factor = exp_nonpositive(previous - shift);
  store(u.sum + r * kLanes, load(u.sum + r * kLanes) * factor + total);
  u.max[r] = highest[0];
  for (float* out = u.out + r * P; out < u.out + (r + 1) * P; out += kLanes) store(out, load(out) * factor);
}

// Online softmax over keys [begin, end): leaves the unnormalised output, maximum and sum in the unit.
template <class T, class Blocks>
void attend(const AttentionParams& p, const Unit& u, Blocks blocks, int64_t b, int64_t h, const Visible& visible,
            int64_t begin, int64_t end) {
  const int64_t P = padded(p.shape.D);
  blocks.load_queries(row_of<T>(p.q, b, h, u.first), p.q.row_stride);
  fill_zero(u.out, u.rows * P);
  fill_zero(u.sum, u.rows * kLanes);
  for (int64_t r = 0; r < u.rows; ++r) u.max[r] = -kInfinity;
  for (int64_t s = begin; s < end; s += kKeyBlock) {
    const int64_t keys = min_of(kKeyBlock, end - s);
    blocks.load_keys(b, h, s, keys);
    const auto seen = [&](int64_t r) { return min_of(max_of(visible.end(u.first + r) - s, 0), keys); };
    for (int64_t r = 0; r < u.rows; r += blocks.tile_rows()) {
      const int64_t n = min_of(blocks.tile_rows(), u.rows - r);
      if (seen(r + n - 1) == 0) continue;
      blocks.score(r, n);
      for (int64_t i = 0; i < n; ++i) {
        if (seen(r + i) != 0) softmax_row(u, u.scores + i * kKeyBlock, r + i, seen(r + i), p.shape.scale, P);
      }
      blocks.accumulate(r, n, seen);
    }
  }
}

template <class T>
void attend_in_blocks(const AttentionParams& p, const Unit& u, int64_t b, int64_t h, const Visible& visible,
                      int64_t begin, int64_t end) {
  if (p.k_scale.data != nullptr) return attend<T>(p, u, CodeBlocks(p, u), b, h, visible, begin, end);
#if defined(__AVX512BF16__)
  if constexpr (__is_same(T, bf16)) {
    if (PairBlocks::fits(p)) return attend<T>(p, u, PairBlocks(p, u), b, h, visible, begin, end);
  }
#endif
  attend<T>(p, u, WideBlocks<T>(p, u), b, h, visible, begin, end);
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
  Unit u(p.scratch, P);
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
      attend_in_blocks<T>(p, u, b, bh % shape.H, visible, from, min_of(from + span, last));
      for (int64_t r = 0; r < u.rows; ++r) {
        const float sum = reduce_add(load(u.sum + r * kLanes));
        const float factor = sum == 0 ? 0.f : 1.f / sum;
        const float lse = sum == 0 ? -kInfinity : u.max[r] + __builtin_logf(sum);
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
