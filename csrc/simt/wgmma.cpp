#include "wgmma.h"

#include <algorithm>
#include <limits>

#include "sanitizer.h"

namespace simt {
namespace {

constexpr int kLanes = 32, kRowBytes = 128, kChunkBytes = 16, kDepth = 16, kMaxColumns = 128;

struct Product {
  WgmmaProduct lanes[kLanes];
  uint32_t a[kLanes][4];  // the left operand's registers as they were at the issue
  int group;
};

// The values of accumulators that products in flight will write.
struct Accumulators {
  float* d[kLanes];
  int columns;
  std::vector<float> values;  // [lane][columns / 8][4]
};

struct WarpState {
  std::vector<Product> products;
  std::vector<Accumulators> accumulators;
  int group = 0;
  bool fenced = false;
};

WarpState warps[kMaxThreads / kLanes];

WarpState& own_warp() { return warps[current_thread().warp]; }

// 16 bytes of row `row`, from column 8 `chunk` on.
const uint16_t* chunk_of(const SwizzledTile& tile, int row, int chunk, const Where& where) {
  const int place = row * kRowBytes + (chunk ^ row % 8) * kChunkBytes;
  const int64_t index = tile.index + tile.storage->elements_in(place);
  return static_cast<const uint16_t*>(tile.storage->read_by_async_proxy(index, kChunkBytes, where));
}

// Reads the warp's part of a [16, 16] and all of b [16, columns].
struct Operands {
  float a[16][kDepth], b[kDepth][kMaxColumns];

  Operands(const Product& product, const Where& where) {
    const WgmmaProduct& p = product.lanes[0];
    const int warp_row = current_thread().warp % 4 * 16;
    if (p.a == nullptr) {
      for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < kDepth; ++k)
          a[row][k] = p.to_float(chunk_of(p.a_tile, warp_row + row, (p.k + k) / 8, where)[(p.k + k) % 8]);
      }
    } else {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
          for (int half = 0; half < 2; ++half) {
            a[lane / 4 + i % 2 * 8][2 * (lane % 4) + i / 2 * 8 + half] =
                p.to_float(static_cast<uint16_t>(product.a[lane][i] >> 16 * half));
          }
        }
      }
    }
    for (int n = 0; n < p.columns; n += 8) {
      for (int i = 0; i < 8; ++i) {  // row n + i of b's transpose, or 8 columns of a row of b
        for (int half = 0; half < 2; ++half) {
          if (p.by_columns) {
            const uint16_t* const bits = chunk_of(p.b_tile, p.k + half * 8 + i, n / 8, where);
            for (int j = 0; j < 8; ++j) b[half * 8 + i][n + j] = p.to_float(bits[j]);
          } else {
            const uint16_t* const bits = chunk_of(p.b_tile, n + i, p.k / 8 + half, where);
            for (int j = 0; j < 8; ++j) b[half * 8 + j][n + i] = p.to_float(bits[j]);
          }
        }
      }
    }
  }
};

void execute_issue(uint32_t, void* const (&arguments)[32]) {
  WarpState& warp = own_warp();
  Product product{};
  for (int lane = 0; lane < kLanes; ++lane) {
    product.lanes[lane] = *static_cast<const WgmmaProduct*>(arguments[lane]);
    if (product.lanes[lane].a != nullptr) std::copy_n(product.lanes[lane].a, 4, product.a[lane]);
  }
  product.group = warp.group;
  const WgmmaProduct& first = product.lanes[0];
  const int count = first.columns / 2;
  const auto same = [&](const Accumulators& other) { return other.d[0] == first.d; };
  auto found = std::find_if(warp.accumulators.begin(), warp.accumulators.end(), same);
  if (found == warp.accumulators.end()) {
    Accumulators fresh{{}, first.columns, {}};
    for (int lane = 0; lane < kLanes; ++lane) {
      fresh.d[lane] = product.lanes[lane].d;
      fresh.values.insert(fresh.values.end(), fresh.d[lane], fresh.d[lane] + count);
      std::fill_n(fresh.d[lane], count, std::numeric_limits<float>::quiet_NaN());
    }
    warp.accumulators.push_back(std::move(fresh));
  }
  warp.products.push_back(product);
}

constexpr Collective kIssue{"wgmma", false, execute_issue};
constexpr Collective kWait{"wgmma wait", true, [](uint32_t, void* const (&)[32]) {}};

void compute(const Product& product, Accumulators& accumulators, const Where& where) {
  const Operands operands(product, where);
  const WgmmaProduct& first = product.lanes[0];
  float d[16][kMaxColumns] = {};
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < kDepth; ++k) {
      for (int n = 0; n < first.columns; ++n) d[m][n] += operands.a[m][k] * operands.b[k][n];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* const values = accumulators.values.data() + lane * first.columns / 2;
    for (int i = 0; i < first.columns / 2; ++i) {
      const float sum = d[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + 2 * (lane % 4) + i % 2];
      values[i] = first.accumulate ? values[i] + sum : sum;
    }
  }
}

// Finishes the oldest products while they belong to a group that must be done.
void finish_products(int groups_in_flight, const Where& where) {
  WarpState& warp = own_warp();
  while (!warp.products.empty() && warp.products.front().group + groups_in_flight < warp.group) {
    const Product product = warp.products.front();
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t* const a = product.lanes[lane].a;
      if (a != nullptr && !std::equal(a, a + 4, product.a[lane]))
        fail("the registers of a left operand changed while its wgmma was in flight", where);
    }
    warp.products.erase(warp.products.begin());
    const auto own = [&](const Accumulators& other) { return other.d[0] == product.lanes[0].d; };
    auto accumulators = std::find_if(warp.accumulators.begin(), warp.accumulators.end(), own);
    compute(product, *accumulators, where);
    const auto uses = [&](const Product& other) { return other.lanes[0].d == product.lanes[0].d; };
    if (std::any_of(warp.products.begin(), warp.products.end(), uses)) continue;
    const int count = accumulators->columns / 2;
    for (int lane = 0; lane < kLanes; ++lane) {
      std::copy_n(accumulators->values.data() + lane * count, count, accumulators->d[lane]);
    }
    warp.accumulators.erase(accumulators);
  }
}

}  // namespace

void start_wgmma() {
  for (WarpState& warp : warps) warp = WarpState{};
}

void check_wgmma_of_exiting_thread() {
  if (!own_warp().products.empty()) fail("a thread exits while its wgmma products are in flight", Where::current());
}

void issue_wgmma(const WgmmaProduct& product, const Where& where) {
  const EmulatorSection section;
  if (!own_warp().fenced) fail("wgmma without wgmma_fence at the start of its batch", where);
  WgmmaProduct argument = product;
  warp_collective(~0u, kIssue, &argument, where);
  if (current_thread().lane == 0) (void)Operands(own_warp().products.back(), where);  // the checks of reading
}

void fence_wgmma(const Where& where) {
  const EmulatorSection section;
  warp_collective(~0u, kWait, nullptr, where);
  own_warp().fenced = true;
}

void commit_wgmma(const Where& where) {
  const EmulatorSection section;
  warp_collective(~0u, kWait, nullptr, where);
  if (current_thread().lane == 0) {
    ++own_warp().group;
    own_warp().fenced = false;
  }
  warp_collective(~0u, kWait, nullptr, where);
}

void wait_for_wgmma(int groups_in_flight, const Where& where) {
  const EmulatorSection section;
  warp_collective(~0u, kWait, nullptr, where);
  if (current_thread().lane == 0) finish_products(groups_in_flight, where);
  warp_collective(~0u, kWait, nullptr, where);
}

}  // namespace simt
