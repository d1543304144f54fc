// Instructions of Hopper (sm_90a): mbarriers, bulk tensor copies (TMA) and warpgroup products (wgmma).
//
// Tiles in shared memory are rows of 64 16-bit elements (128 bytes), 1024-byte aligned, with the 128-byte swizzle:
// chunk c of 16 bytes of row r lies at place c ^ (r % 8). A warpgroup is 4 consecutive warps, the first a multiple
// of 4.
#pragma once
#include <cuda.h>

namespace simt {

// Whether these instructions exist in the code being compiled: kernels that use them have an empty body elsewhere.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHopper = true;
#else
inline constexpr bool kHopper = false;
#endif

// ---- mbarriers: count arrivals and bytes of bulk copies; phases are told apart by their parity ----

// One thread initialises a barrier to `arrivals` a phase, fences, and a block barrier follows.
SIMT_DEVICE void mbarrier_init(Shared<uint64_t> barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
SIMT_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

SIMT_DEVICE void mbarrier_arrive(Shared<uint64_t> barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and makes the phase wait for `bytes` of bulk copies.
SIMT_DEVICE void mbarrier_arrive_expect(Shared<uint64_t> barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Returns when the phase of this parity is complete: at once where the running phase has the other parity, so a wait
// for parity 1 on a new barrier does not wait.
SIMT_DEVICE void mbarrier_wait(Shared<uint64_t> barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "retry:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
      "@!complete bra retry;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---- bulk tensor copies ----

// Describes [batch, head, row, 64] in global memory and boxes of rows of it; a kernel's parameter, __grid_constant__.
using TensorMap = CUtensorMap;

// Strides in elements, multiples of 16 bytes. False where the driver refuses the shape.
inline bool make_tensor_map(TensorMap* map, Dtype dtype, const void* data, int64_t rows, int64_t heads, int64_t batch,
                            int64_t row_stride, int64_t head_stride, int64_t batch_stride, int box_rows) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found) !=
          cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  const cuuint64_t sizes[4] = {64, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(heads),
                               static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(row_stride) * 2, static_cast<cuuint64_t>(head_stride) * 2,
                                 static_cast<cuuint64_t>(batch_stride) * 2};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapDataType type =
      dtype == Dtype::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
             map, type, 4, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// One thread copies the box of rows from `row` on into a tile, zeros for rows outside the tensor. It counts box_rows *
// 128 bytes on `barrier`, whose running phase must expect them.
template <class T>
SIMT_DEVICE void tma_load(Shared<T> tile, const TensorMap& map, Shared<uint64_t> barrier, int row, int head,
                          int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(tile)),
      "l"(&map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

// ---- warpgroup products ----

// Makes this thread's writes to shared memory visible to wgmma and to bulk copies that other threads start after a
// barrier.
SIMT_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A batch of products: fence, products, commit. Their registers may not be touched before the wait, which returns when
// all but the newest kGroupsInFlight batches are done. All four warps do all of it.
SIMT_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SIMT_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroupsInFlight>
SIMT_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsInFlight) : "memory");
}
// Keeps the compiler from moving uses of accumulators across an instruction that does not name them.
template <int kColumns>
SIMT_DEVICE void wgmma_pin(float (&d)[kColumns][4]) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
  }
}

// A tile as wgmma's descriptor names it. Stride between groups of 8 rows 1024 bytes; bit 62: 128-byte swizzle. The
// leading offset is not used by tiles that are one swizzle atom wide.
struct SwizzledTile {
  uint64_t descriptor;
};
template <class T>
SIMT_DEVICE SwizzledTile swizzled_tile(Shared<T> tile) {
  return {uint64_t{shared_address(tile) >> 4 & 0x3fff} | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
          uint64_t{1} << 62};
}

#define SIMT_ACCUMULATORS_8(d, n)                                                                                      \
  "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3]), "+f"(d[n + 1][0]), "+f"(d[n + 1][1]), "+f"(d[n + 1][2]), \
      "+f"(d[n + 1][3])
#define SIMT_ACCUMULATORS_32(d, n) \
  SIMT_ACCUMULATORS_8(d, n), SIMT_ACCUMULATORS_8(d, n + 2), SIMT_ACCUMULATORS_8(d, n + 4), SIMT_ACCUMULATORS_8(d, n + 6)
#define SIMT_REGISTERS_32                                                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, "                                                                                                          \
  "%25, %26, %27, %28, %29, %30, %31"
#define SIMT_REGISTERS_64                                                                                            \
  SIMT_REGISTERS_32                                                                                                  \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d [64, 128] = a [64, 16] b [128, 16]^T, added to d where `accumulate`; a and b are the columns from `k` on, a
// multiple of 16, of tiles. Of d, warp w of the group holds the rows from 16 w on, each n-th 8 columns as mma_m16n8k16
// does.
#define SIMT_WGMMA_BY_ROWS(Element, name)                                                                              \
  SIMT_DEVICE void wgmma_by_rows(Element, float (&d)[16][4], SwizzledTile a, SwizzledTile b, int k, bool accumulate) { \
    asm volatile(                                                                                                      \
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                                               \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " {" SIMT_REGISTERS_64                            \
        "}, %64, %65, add, 1, 1, 0, 0;\n}"                                                                             \
        : SIMT_ACCUMULATORS_32(d, 0), SIMT_ACCUMULATORS_32(d, 8)                                                       \
        : "l"(a.descriptor + (k * 2 >> 4)), "l"(b.descriptor + (k * 2 >> 4)), "r"(static_cast<int>(accumulate)));      \
  }
SIMT_WGMMA_BY_ROWS(bf16, "bf16")
SIMT_WGMMA_BY_ROWS(fp16, "f16")
#undef SIMT_WGMMA_BY_ROWS

// d [64, 64] += a [64, 16] b [16, 64], where a is in registers, each warp's rows as mma_m16n8k16 has them, and b is the
// rows from `k` on, a multiple of 16, of a tile.
#define SIMT_WGMMA_BY_COLUMNS(Element, name)                                                                    \
  SIMT_DEVICE void wgmma_by_columns(Element, float (&d)[8][4], const uint32_t (&a)[4], SwizzledTile b, int k) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " {" SIMT_REGISTERS_32             \
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                                    \
                 : SIMT_ACCUMULATORS_32(d, 0)                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor + (k * 128 >> 4)));             \
  }
SIMT_WGMMA_BY_COLUMNS(bf16, "bf16")
SIMT_WGMMA_BY_COLUMNS(fp16, "f16")
#undef SIMT_WGMMA_BY_COLUMNS
#undef SIMT_ACCUMULATORS_8
#undef SIMT_ACCUMULATORS_32
#undef SIMT_REGISTERS_32
#undef SIMT_REGISTERS_64

// All warps of a warpgroup give up registers, or take them, so that each thread has kCount, a multiple of 8.
template <int kCount>
SIMT_DEVICE void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
SIMT_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace simt
