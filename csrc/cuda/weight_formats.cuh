// What 16 bytes of a weight row hold, and how they become floats. A format has
//
//   kValues            weights in 16 bytes
//   kGroupScale        whether a float32 scale for every 64 columns belongs to a row
//   column(v, chunk)   column of the first of the 8 weights that chunk `chunk` of the row's v-th 16 bytes holds
//   unpack             the 8 weights of a chunk; `chunk` is known at compile time once loops are unrolled
//
// Codes become floats without conversions, which run at a quarter of the rate: their bits are put into the mantissa of
// 2^23 in place, and one exact multiply-add takes that and the offset of the code away.
#pragma once
#include "../simt/simt.h"

namespace persimmon::cuda {

constexpr int kChunk = 8;       // weights unpacked at a time: a 16-byte vector of 16-bit activations
constexpr int kInt4Group = 64;  // columns that share a scale

template <class T>
struct PlainWeight {
  static_assert(sizeof(T) == 2, "16-bit elements");
  static constexpr int kValues = 8;
  static constexpr bool kGroupScale = false;
  SIMT_DEVICE static int column(int vector, int /*chunk*/) { return vector * kValues; }
  SIMT_DEVICE static void unpack(const uint4& packed, int /*chunk*/, float (&values)[kChunk]) {
    simt::unpack_vector<T>(packed, values);
  }
};

// The number that `bits` of `word` are: an integer times 2^kShift; minus `offset`.
template <int kShift>
SIMT_DEVICE float code_value(uint32_t word, uint32_t bits, float offset) {
  constexpr float kInverse = 1.0f / (1 << kShift);
  return fmaf(__uint_as_float((word & bits) | 0x4B000000u), kInverse, -(8388608.0f * kInverse + offset));
}

// The four int8 codes of a word.
SIMT_DEVICE void unpack_int8(uint32_t codes, float* values) {
  const uint32_t word = codes ^ 0x80808080u;  // value + 128, not negative
  values[0] = code_value<0>(word, 0xffu, 128.0f);
  values[1] = code_value<8>(word, 0xff00u, 128.0f);
  values[2] = code_value<0>(word >> 16, 0xffu, 128.0f);
  values[3] = code_value<8>(word >> 16, 0xff00u, 128.0f);
}

SIMT_DEVICE uint32_t word_of(const uint4& packed, int i) {
  return i == 0 ? packed.x : i == 1 ? packed.y : i == 2 ? packed.z : packed.w;
}

// int8, a byte a weight.
struct Int8Weight {
  static constexpr int kValues = 16;
  static constexpr bool kGroupScale = false;
  SIMT_DEVICE static int column(int vector, int chunk) { return vector * kValues + chunk * kChunk; }
  SIMT_DEVICE static void unpack(const uint4& packed, int chunk, float (&values)[kChunk]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) unpack_int8(word_of(packed, 2 * chunk + i), values + 4 * i);
  }
};

// Groups of 64 weights in 32 bytes: byte i holds weight i (low bits) and i + 32 (high bits) as value + 8. 16 bytes are
// half a group: weights 16 half + (0 … 15) in chunks 0 and 1, and those 32 further in chunks 2 and 3.
struct Int4Weight {
  static constexpr int kValues = 32;
  static constexpr bool kGroupScale = true;
  SIMT_DEVICE static int column(int vector, int chunk) {
    return vector / 2 * kInt4Group + vector % 2 * 16 + chunk / 2 * 32 + chunk % 2 * kChunk;
  }
  SIMT_DEVICE static void unpack(const uint4& packed, int chunk, float (&values)[kChunk]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t word = word_of(packed, chunk % 2 * 2 + i);
      if (chunk < 2) {
        values[4 * i] = code_value<0>(word, 0xfu, 8.0f);
        values[4 * i + 1] = code_value<8>(word, 0xf00u, 8.0f);
        values[4 * i + 2] = code_value<0>(word >> 16, 0xfu, 8.0f);
        values[4 * i + 3] = code_value<8>(word >> 16, 0xf00u, 8.0f);
      } else {
        values[4 * i] = code_value<4>(word, 0xf0u, 8.0f);
        values[4 * i + 1] = code_value<12>(word, 0xf000u, 8.0f);
        values[4 * i + 2] = code_value<4>(word >> 16, 0xf0u, 8.0f);
        values[4 * i + 3] = code_value<12>(word >> 16, 0xf000u, 8.0f);
      }
    }
  }
};

}  // namespace persimmon::cuda
