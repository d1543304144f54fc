#include "axpy.h"
#include "linear.h"

namespace persimmon::cpu::PERSIMMON_ISA {

inline constexpr int kGroupBytes = kInt4Group / 2;

struct Int4Columns {
  using H = float;
  const uint8_t* packed;  // [F, C/2], rows stride / 2 apart
  const float* scale;     // [F, C/64], rows stride / 64 apart
  int64_t stride, M, C;

  static Int4Columns of(const SparseLinearParams& p, int64_t first, int64_t C) {
    return {static_cast<const uint8_t*>(p.weight) + first / 2, p.scale + first / kInt4Group, p.C, p.M, C};
  }

  template <int R>
  void add(const Passes& passes, const float* h, float* sums) const {
    const int64_t groups = C / kInt4Group, row_groups = stride / kInt4Group;
    Streams<R> streams = streams_of<R>(packed, stride / 2, C / 2, passes);
    const float* scale_of[R];
    for (int r = 0; r < R; ++r) {
      scale_of[r] = scale + passes.rows[r] * row_groups;
      for (int64_t g = 0; g < groups; g += kLine / 4) __builtin_prefetch(scale + passes.next[r] * row_groups + g);
    }
    for_each_sum_block(M, C, sums, [&](int64_t c, int64_t columns, float* block) {
      for (int64_t i = 0; i < columns; i += kInt4Group) {
        const int64_t g = (c + i) / kInt4Group;
        M == 1 ? add_group(streams, scale_of, g, h, block + i)
               : add_group_of_rows(streams, scale_of, g, h, block + i, M);
      }
    });
  }

  template <int R>
  PERSIMMON_INLINE void add_group(Streams<R>& streams, const float* const (&scale_of)[R], int64_t g, const float* h,
                                  float* sum) {
    prefetch(streams, g * kGroupBytes);
    vf factor[R];
    for (int r = 0; r < R; ++r) factor[r] = broadcast(h[r] * scale_of[r][g]);
    for (int i = 0; i < kGroupBytes; i += kLanes) {
      vf low = load(sum + i), high = load(sum + kGroupBytes + i);
      for (int r = 0; r < R; ++r) {
        const vi bytes = load_bytes(reinterpret_cast<const uint8_t*>(streams.row[r]) + g * kGroupBytes + i);
        low += int4_values(bytes) * factor[r];
        high += int4_values(bytes >> 4) * factor[r];
      }
      store(sum + i, low);
      store(sum + kGroupBytes + i, high);
    }
  }

  template <int R>
  PERSIMMON_INLINE void add_group_of_rows(Streams<R>& streams, const float* const (&scale_of)[R], int64_t g,
                                          const float* h, float* sums, int64_t M) {
    prefetch(streams, g * kGroupBytes);
    for (int i = 0; i < kGroupBytes; i += kLanes) {
      vf low[R], high[R];
      for (int r = 0; r < R; ++r) {
        const vi bytes = load_bytes(reinterpret_cast<const uint8_t*>(streams.row[r]) + g * kGroupBytes + i);
        low[r] = int4_values(bytes) * scale_of[r][g];
        high[r] = int4_values(bytes >> 4) * scale_of[r][g];
      }
      add_products(low, h, sums + i, M);
      add_products(high, h, sums + kGroupBytes + i, M);
    }
  }

  void finish(float*) const {}
};

#if defined(__AVX512F__)
// One row of x. 128 columns are sixteen words of 32 bits, of which no byte needs to be moved: nibble k of all words
// makes a vector of sums, in an order that finish() undoes.
struct Int4Words {
  using H = float;
  const uint8_t* packed;  // [F, C/2], rows stride / 2 apart
  const float* scale;     // [F, C/64], rows stride / 64 apart
  int64_t stride, M, C;

  static Int4Words of(const SparseLinearParams& p, int64_t first, int64_t C) {
    return {static_cast<const uint8_t*>(p.weight) + first / 2, p.scale + first / kInt4Group, p.C, p.M, C};
  }

  // Nibble `place` of 16 bits, as a number: by a table of sixteen, or as low digits of a large float, which is then
  // subtracted. A half each, since the two keep different units of the processor busy.
  template <int place>
  PERSIMMON_INLINE __m512 values(__m512i words) {
    if constexpr (place < 2) {
      return (__m512)int4_values((vi)_mm512_srli_epi32(words, 4 * place));
    } else {
      constexpr int kExponent = 23 - 4 * place;  // of the float whose digit of value 1 lies at the nibble
      const __m512i digits = _mm512_set1_epi32(15 << 4 * place), large = _mm512_set1_epi32((127 + kExponent) << 23);
      const __m512 zero = _mm512_set1_ps(float(1 << kExponent) + 8);
      const __m512i in_large = _mm512_ternarylogic_epi32(large, words, digits, 0xf8);  // large | words & digits
      return _mm512_sub_ps((__m512)in_large, zero);
    }
  }

  template <int R>
  PERSIMMON_INLINE void add_block(Streams<R>& streams, const float* const (&scale_of)[R], int64_t g, bool whole,
                                  const __m512 (&h)[R], float* sums) {
    prefetch(streams, g * kGroupBytes);
    __m512 sum[8];
    for (int k = 0; k < 8; ++k) sum[k] = _mm512_loadu_ps(sums + 16 * k);
    for (int r = 0; r < R; ++r) {
      const char* bytes = streams.row[r] + g * kGroupBytes;
      const __m512i words = whole ? _mm512_loadu_si512(bytes) : _mm512_maskz_loadu_epi32(0x00ff, bytes);
      __m512 factor = _mm512_set1_ps(scale_of[r][g]);  // the group of the first eight words
      if (whole) factor = _mm512_mask_broadcastss_ps(factor, 0xff00, _mm_load_ss(scale_of[r] + g + 1));
      factor = _mm512_mul_ps(factor, h[r]);
      const __m512i upper = _mm512_srli_epi32(words, 16);
      sum[0] = _mm512_fmadd_ps(values<0>(words), factor, sum[0]);
      sum[1] = _mm512_fmadd_ps(values<1>(words), factor, sum[1]);
      sum[2] = _mm512_fmadd_ps(values<2>(words), factor, sum[2]);
      sum[3] = _mm512_fmadd_ps(values<3>(words), factor, sum[3]);
      sum[4] = _mm512_fmadd_ps(values<0>(upper), factor, sum[4]);
      sum[5] = _mm512_fmadd_ps(values<1>(upper), factor, sum[5]);
      sum[6] = _mm512_fmadd_ps(values<2>(upper), factor, sum[6]);
      sum[7] = _mm512_fmadd_ps(values<3>(upper), factor, sum[7]);
    }
    for (int k = 0; k < 8; ++k) _mm512_storeu_ps(sums + 16 * k, sum[k]);
  }

  template <int R>
  void add(const Passes& passes, const float* h, float* sums) const {
    const int64_t groups = C / kInt4Group, row_groups = stride / kInt4Group;
    Streams<R> streams = streams_of<R>(packed, stride / 2, C / 2, passes);
    const float* scale_of[R];
    __m512 factors[R];
    for (int r = 0; r < R; ++r) {
      scale_of[r] = scale + passes.rows[r] * row_groups;
      for (int64_t g = 0; g < groups; g += kLine / 4) __builtin_prefetch(scale + passes.next[r] * row_groups + g);
      factors[r] = _mm512_set1_ps(h[r]);
    }
    int64_t g = 0;
    for (; g + 2 <= groups; g += 2) add_block(streams, scale_of, g, true, factors, sums + g * kInt4Group);
    if (g < groups) add_block(streams, scale_of, g, false, factors, sums + g * kInt4Group);
  }

  // Word w has columns 4 w, …, 4 w + 3 of the 32 low and the 32 high nibbles of its group, in the vectors of every
  // other k: a transpose of four such vectors puts the columns of a word side by side, one of quarters puts words in
  // order.
  void finish(float* sums) const {
    for (int64_t c = 0; c < C; c += kSumColumns, sums += kSumColumns) {
      __m512 v[8];
      for (int k = 0; k < 8; ++k) v[k] = _mm512_loadu_ps(sums + 16 * k);
      for (int nibble = 0; nibble < 2; ++nibble) {
        const __m512d a = (__m512d)_mm512_unpacklo_ps(v[nibble], v[nibble + 2]);
        const __m512d b = (__m512d)_mm512_unpacklo_ps(v[nibble + 4], v[nibble + 6]);
        const __m512d d = (__m512d)_mm512_unpackhi_ps(v[nibble], v[nibble + 2]);
        const __m512d e = (__m512d)_mm512_unpackhi_ps(v[nibble + 4], v[nibble + 6]);
        const __m512 w0 = (__m512)_mm512_unpacklo_pd(a, b), w1 = (__m512)_mm512_unpackhi_pd(a, b);
        const __m512 w2 = (__m512)_mm512_unpacklo_pd(d, e), w3 = (__m512)_mm512_unpackhi_pd(d, e);
        for (int group = 0; group < 2; ++group) {
          const __m512 low = group ? _mm512_shuffle_f32x4(w0, w1, 0xee) : _mm512_shuffle_f32x4(w0, w1, 0x44);
          const __m512 high = group ? _mm512_shuffle_f32x4(w2, w3, 0xee) : _mm512_shuffle_f32x4(w2, w3, 0x44);
          float* out = sums + 64 * group + 32 * nibble;
          _mm512_storeu_ps(out, _mm512_shuffle_f32x4(low, high, 0x88));
          _mm512_storeu_ps(out + 16, _mm512_shuffle_f32x4(low, high, 0xdd));
        }
      }
    }
  }
};
#endif

void sparse_linear_int4(const SparseLinearParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
#if defined(__AVX512F__)
    if (p.M == 1) return axpy<T, Int4Words>(p, begin, end);
#endif
    axpy<T, Int4Columns>(p, begin, end);
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
