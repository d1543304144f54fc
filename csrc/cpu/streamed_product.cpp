#include "streamed_product.h"

#include <ATen/ops/empty.h>

#include "binding.h"
#include "sparse_rule.h"

namespace persimmon::cpu {

void streamed_product(SparseKernel kernel, const Product& p, const at::Tensor& weight, const at::Tensor& group_scale,
                      const at::Tensor& column_scale, int64_t row_bytes, bool all_rows, bool h_bf16) {
  TORCH_CHECK_VALUE(p.K <= INT32_MAX, "the weight must have fewer than 2^31 hidden units, got ", p.K, ".");
  const auto bytes = p.x.options().dtype(at::kByte);
  const at::Tensor mask = at::empty({p.K}, bytes);
  const at::Tensor rows = at::empty({p.K + 1}, bytes.dtype(at::kInt));  // the compaction writes one behind the last
  const int64_t padded = (p.K + kAxpyRows - 1) / kAxpyRows * kAxpyRows;
  const at::Tensor h = at::empty({padded, p.M}, bytes.dtype(h_bf16 ? at::kBFloat16 : at::kFloat));
  int64_t count = 0;
  const GatherRowsParams gather{
      .x = p.x.const_data_ptr(),
      .mask = mask.mutable_data_ptr<uint8_t>(),
      .rows = rows.mutable_data_ptr<int32_t>(),
      .h = h.mutable_data_ptr(),
      .count = &count,
      .M = p.M,
      .F = p.K,
      .all = all_rows,
      .h_bf16 = h_bf16,
      .dtype = p.dtype,
  };
  gather_rows_kernel()(gather, 0, 1);

  const int64_t per_chunk = rows_per_chunk(count), chunks = (count + per_chunk - 1) / per_chunk;
  const int64_t blocks = (p.N + kSumColumns - 1) / kSumColumns;
  const at::Tensor partials = at::empty({chunks, blocks, p.M, kSumColumns}, bytes.dtype(at::kFloat));
  const SparseLinearParams params{
      .weight = weight.const_data_ptr(),
      .scale = floats_or_null(group_scale),
      .rows = rows.const_data_ptr<int32_t>(),
      .h = h.const_data_ptr(),
      .partials = partials.mutable_data_ptr<float>(),
      .count = count,
      .M = p.M,
      .C = p.N,
      .blocks = blocks,
      .rows_per_chunk = per_chunk,
      .dtype = p.dtype,
  };
  parallel(kernel, params, chunks, per_chunk * row_bytes);

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
  streamed_product(sparse_linear_kernel(), p, weight, {}, {}, p.N * weight.element_size(), all_rows,
                   dots_bf16(p.dtype));
}

}  // namespace persimmon::cpu
