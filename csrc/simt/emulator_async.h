// cp.async, ldmatrix and mma.sync under g++; device_async.h says what each does.
#pragma once
#include "async_copies.h"

namespace simt {

template <class T>
void cp_async16(Shared<T> destination, const void* source, bool valid = true, const Where& where = Where::current()) {
  issue_copy(destination.storage(), destination.offset(), valid ? source : nullptr, 16, where);
}
template <class T>
void cp_async4(Shared<T> destination, const void* source, bool valid = true, const Where& where = Where::current()) {
  issue_copy(destination.storage(), destination.offset(), valid ? source : nullptr, 4, where);
}
inline void cp_async_commit() { commit_copies(); }
template <int kGroupsInFlight>
void cp_async_wait() {
  wait_for_copies(kGroupsInFlight);
}

struct MatrixArgument {
  uint16_t row[8];    // in: the row of a matrix that the lane's address names
  uint32_t words[4];  // out
};

// Lane l gives row l % 8 of matrix l / 8, and gets of every matrix the elements (l / 4, 2 (l % 4)) and the next one.
template <bool kTranspose>
void execute_ldmatrix(uint32_t, void* const (&arguments)[32]) {
  const auto row = [&](int matrix, int r) {
    return static_cast<const MatrixArgument*>(arguments[matrix * 8 + r])->row;
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int m = 0; m < 4; ++m) {
      const uint32_t low = kTranspose ? row(m, pair)[group] : row(m, group)[pair];
      const uint32_t high = kTranspose ? row(m, pair + 1)[group] : row(m, group)[pair + 1];
      static_cast<MatrixArgument*>(arguments[lane])->words[m] = low | high << 16;
    }
  }
}

inline constexpr Collective kLdmatrix{"ldmatrix", false, execute_ldmatrix<false>};
inline constexpr Collective kLdmatrixTrans{"ldmatrix.trans", false, execute_ldmatrix<true>};

template <class T>
void load_matrices(uint32_t (&words)[4], Shared<T> row, const Collective& operation, const Where& where) {
  MatrixArgument argument;
  std::memcpy(argument.row, row.storage().read(row.offset(), sizeof(argument.row), where), sizeof(argument.row));
  warp_collective(~0u, operation, &argument, where);
  std::memcpy(words, argument.words, sizeof(words));
}
template <class T>
void ldmatrix_x4(uint32_t (&words)[4], Shared<T> row, const Where& where = Where::current()) {
  load_matrices(words, row, kLdmatrix, where);
}
template <class T>
void ldmatrix_x4_trans(uint32_t (&words)[4], Shared<T> row, const Where& where = Where::current()) {
  load_matrices(words, row, kLdmatrixTrans, where);
}

struct MmaArgument {
  const uint32_t* a;
  uint32_t b[2];
  float* d;
};

template <class T>
void execute_mma(uint32_t, void* const (&arguments)[32]) {
  float a[16][16], b[16][8], d[16][8];
  const auto of_lane = [&](int lane) -> const MmaArgument& {
    return *static_cast<const MmaArgument*>(arguments[lane]);
  };
  for (int lane = 0; lane < 32; ++lane) {
    const MmaArgument& argument = of_lane(lane);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const float2 values = unpack2<T>(argument.a[i]);
      a[group + i % 2 * 8][pair + i / 2 * 8] = values.x;
      a[group + i % 2 * 8][pair + i / 2 * 8 + 1] = values.y;
    }
    for (int i = 0; i < 2; ++i) {
      const float2 values = unpack2<T>(argument.b[i]);
      b[pair + i * 8][group] = values.x;
      b[pair + i * 8 + 1][group] = values.y;
    }
    for (int i = 0; i < 4; ++i) d[group + i / 2 * 8][pair + i % 2] = argument.d[i];
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) of_lane(lane).d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
}

template <class T>
inline constexpr Collective kMma{"mma.m16n8k16", false, execute_mma<T>};

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  const Where& where = Where::current()) {
  MmaArgument argument{a, {b0, b1}, d};
  warp_collective(~0u, kMma<T>, &argument, where);
}

}  // namespace simt
