#include "linear.h"
#include "vec.h"

namespace persimmon::cpu::PERSIMMON_ISA {

// Calls pack(elements of x, how many, packed line) for every row of x in the lines [begin, end).
template <class T, class To, class Pack>
PERSIMMON_INLINE void for_each_line(const PackRowsParams& p, int64_t begin, int64_t end, Pack&& pack) {
  const int64_t length = weights_per_line(p.format, p.dtype);
  for (int64_t line = begin; line < end; ++line) {
    const int64_t k = line * length, count = p.K - k < length ? p.K - k : length;
    for (int64_t m = 0; m < p.M; ++m) {
      pack(static_cast<const T*>(p.x) + m * p.K + k, count, static_cast<To*>(p.packed) + (line * p.M + m) * length);
    }
  }
}

#if defined(__AVX512BF16__)
// As Int4Bf16Weights takes the nibbles out of a line: nibble q of 16-bit word j at q * 32 + j.
PERSIMMON_INLINE void pack_nibbles(const bf16 (&x)[2 * kLineBytes], bf16* packed) {
  for (int q = 0; q < 4; ++q) {
    for (int j = 0; j < 32; ++j) {
      const int byte = 2 * j + q / 2, group = byte / 32;
      packed[q * 32 + j] = x[group * kInt4Group + byte % 32 + q % 2 * 32];
    }
  }
}

void pack_bf16(const PackRowsParams& p, int64_t begin, int64_t end) {
  for_each_line<bf16, bf16>(p, begin, end, [&](const bf16* x, int64_t count, bf16* packed) {
    bf16 line[2 * kLineBytes] = {};
    __builtin_memcpy(line, x, sizeof(bf16) * count);
    if (p.format == WeightFormat::int4) {
      pack_nibbles(line, packed);
    } else {
      __builtin_memcpy(packed, line, sizeof(bf16) * weights_per_line(p.format, p.dtype));
    }
  });
}
#endif

void pack_rows(const PackRowsParams& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) return pack_bf16(p, begin, end);
#endif
  with_type(p.dtype, [&](auto tag) {
    for_each_line<decltype(tag), float>(p, begin, end, [&](const auto* x, int64_t count, float* packed) {
      for (int64_t i = 0; i < weights_per_line(p.format, p.dtype); i += kLanes) {
        const int64_t left = count - i;
        store(packed + i, left > 0 ? load_up_to(x + i, left < kLanes ? int(left) : kLanes) : vf{});
      }
    });
  });
}

}  // namespace persimmon::cpu::PERSIMMON_ISA
