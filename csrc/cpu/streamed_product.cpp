#include "streamed_product.h"

#include <ATen/ops/empty.h>

#include <numeric>

#include "binding.h"
#include "sparse_rule.h"

namespace persimmon::cpu {
namespace {

static_assert(kFewRows <= kStreamedRows);

// Writes the rows of W^T to read, in ascending order, and returns how many.
int64_t list_rows(const Product& p, bool all_rows, int32_t* rows) {
  if (all_rows) {
    std::iota(rows, rows + p.K, 0);
    return p.K;
  }
  int64_t count = 0;
  const FindRowsParams params{
      .x = p.x.const_data_ptr(),
      .rows = rows,
      .count = &count,
      .M = p.M,
      .F = p.K,
      .dtype = p.dtype,
  };
  find_rows_kernel()(params, 0, 1);
  return count;
}

}  // namespace

void streamed_product(SparseKernel kernel, const Product& p, const at::Tensor& weight, const at::Tensor& group_scale,
                      const at::Tensor& column_scale, bool all_rows) {
  TORCH_CHECK_VALUE(p.K <= INT32_MAX, "the weight must have fewer than 2^31 hidden units, got ", p.K, ".");
  const at::Tensor rows = at::empty({p.K + kListPadding}, p.x.options().dtype(at::kInt));
  const int64_t count = list_rows(p, all_rows, rows.mutable_data_ptr<int32_t>());
  const int64_t chunks = chunks_of(count, p.M), blocks = (p.N + kSumColumns - 1) / kSumColumns;
  const at::Tensor partials = at::empty({chunks, blocks, p.M, kSumColumns}, p.x.options().dtype(at::kFloat));
  const SparseLinearParams params{
      .x = p.x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .scale = floats_or_null(group_scale),
      .rows = rows.const_data_ptr<int32_t>(),
      .partials = partials.mutable_data_ptr<float>(),
      .count = count,
      .chunks = chunks,
      .M = p.M,
      .C = p.N,
      .F = p.K,
      .blocks = blocks,
      .dtype = p.dtype,
  };
  const int64_t row_bytes = weight.numel() / std::max<int64_t>(p.K, 1) * weight.element_size();
  parallel(kernel, params, chunks * blocks, count / chunks * row_bytes / blocks);

  const SumPartialsParams sum{
      .partials = partials.const_data_ptr<float>(),
      .scale = floats_or_null(column_scale),
      .epilogue = p.epilogue(),
      .y = p.y.mutable_data_ptr(),
      .chunks = chunks,
      .blocks = blocks,
      .block = kSumColumns,
      .M = p.M,
      .N = p.N,
      .dtype = p.dtype,
  };
  parallel(sum_partials_kernel(), sum, p.epilogue_blocks(), chunks * kEpilogueColumns * int64_t(sizeof(float)));
}

void hidden_major_product(const Product& p, const at::Tensor& weight, bool all_rows) {
  streamed_product(sparse_linear_kernel(), p, weight, {}, {}, all_rows);
}

}  // namespace persimmon::cpu
