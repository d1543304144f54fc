// The logits exist one tile of the vocabulary at a time: torch's matrix product writes it, a kernel reads it.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "../cross_entropy.cuh"
#include "binding.h"

namespace persimmon::cuda {
namespace {

// The largest tile of logits takes 128 MiB.
constexpr int64_t kTileRows = 4096, kTileBytes = 128 << 20;

// Of the vocabulary.
int64_t tile_columns(const at::Tensor& hidden) { return kTileBytes / kTileRows / hidden.element_size(); }

// The labels' values are not looked at: that would wait for the device. One out of range gives the loss NaN.
simt::Dtype check(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels) {
  const simt::Dtype dtype = dtype_of(hidden, "hidden");
  check_dim(hidden, "hidden", 2);
  check_dim(weight, "weight", 2);
  check_like(weight, "weight", hidden, "hidden", {weight.size(0), hidden.size(1)});
  check_same_device(labels, "labels", hidden, "hidden");
  check_dtype(labels, "labels", at::kLong);
  check_shape(labels, "labels", {hidden.size(0)});
  return dtype;
}

void check_row_values(const at::Tensor& t, const char* name, const at::Tensor& hidden) {
  check_same_device(t, name, hidden, "hidden");
  check_dtype(t, name, at::kFloat);
  check_shape(t, name, {hidden.size(0)});
}

// Calls body(first row, first column, logits, weight of the tile), a tile of the vocabulary at a time.
template <class Body>
void for_each_tile(const at::Tensor& hidden, const at::Tensor& weight, const Body& body) {
  const int64_t N = hidden.size(0), V = weight.size(0);
  const int64_t most_columns = tile_columns(hidden);
  const at::Tensor buffer = at::empty({std::min(N, kTileRows) * std::min(V, most_columns)}, hidden.options());
  for (int64_t column = 0; column < V; column += most_columns) {
    const at::Tensor tile = weight.narrow(0, column, std::min(most_columns, V - column));
    for (int64_t row = 0; row < N; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, N - row);
      at::Tensor logits = buffer.narrow(0, 0, rows * tile.size(0)).view({rows, tile.size(0)});
      at::mm_out(logits, hidden.narrow(0, row, rows), tile.t());
      body(row, column, logits, tile);
    }
  }
}

// Returns the loss and the log-sum-exp of each row, fp32 [N].
std::tuple<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& hidden_, const at::Tensor& weight,
                                                        const at::Tensor& labels_, int64_t ignore_index) {
  const simt::Dtype dtype = check(hidden_, weight, labels_);
  const c10::cuda::CUDAGuard guard(hidden_.device());
  const at::Tensor hidden = hidden_.contiguous(), labels = labels_.contiguous();
  const auto values = [&](float value) {
    return at::full({hidden.size(0)}, value, hidden.options().dtype(at::kFloat));
  };
  const at::Tensor max = values(-std::numeric_limits<float>::infinity()), sum = values(0.0f);
  const at::Tensor target = values(std::numeric_limits<float>::quiet_NaN());
  for_each_tile(hidden, weight, [&](int64_t row, int64_t column, const at::Tensor& logits, const at::Tensor&) {
    const CrossEntropyParams params{
        .logits = logits.const_data_ptr(),
        .labels = labels.const_data_ptr<int64_t>() + row,
        .max = max.mutable_data_ptr<float>() + row,
        .sum = sum.mutable_data_ptr<float>() + row,
        .target = target.mutable_data_ptr<float>() + row,
        .rows = logits.size(0),
        .first = column,
        .columns = logits.size(1),
    };
    check_launch(launch_cross_entropy(params, dtype, current_stream()), "linear_cross_entropy", hidden, "hidden");
  });
  const at::Tensor lse = sum.log().add_(max.masked_fill(max.isinf(), 0));
  return {lse.sub(target).masked_fill_(labels.eq(ignore_index), 0), lse};
}

// Returns dhidden [N, C] and dweight [V, C]. A tile's product is rounded to their dtype; the tiles of the vocabulary
// that add to dhidden, and the blocks of rows that add to a tile of dweight, are added in float32.
std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_backward(const at::Tensor& dloss_, const at::Tensor& hidden_,
                                                                 const at::Tensor& weight, const at::Tensor& labels_,
                                                                 const at::Tensor& lse_, int64_t ignore_index) {
  const simt::Dtype dtype = check(hidden_, weight, labels_);
  check_row_values(dloss_, "dloss", hidden_);
  check_row_values(lse_, "lse", hidden_);
  const c10::cuda::CUDAGuard guard(hidden_.device());
  const int64_t N = hidden_.size(0), C = hidden_.size(1);
  const at::Tensor hidden = hidden_.contiguous(), labels = labels_.contiguous();
  const at::Tensor dloss = dloss_.contiguous(), lse = lse_.contiguous();
  const auto fp32 = hidden.options().dtype(at::kFloat);
  const at::Tensor dhidden = at::zeros({N, C}, fp32), dweight = at::empty(weight.sizes(), weight.options());
  if (N == 0) dweight.zero_();
  const bool single_block = N <= kTileRows;
  const at::Tensor dtile =
      single_block ? at::Tensor() : at::empty({std::min(weight.size(0), tile_columns(hidden)), C}, fp32);
  for_each_tile(hidden, weight, [&](int64_t row, int64_t column, const at::Tensor& logits, const at::Tensor& tile) {
    const int64_t rows = logits.size(0), columns = logits.size(1);
    const CrossEntropyBackwardParams params{
        .logits = logits.mutable_data_ptr(),
        .labels = labels.const_data_ptr<int64_t>() + row,
        .dloss = dloss.const_data_ptr<float>() + row,
        .lse = lse.const_data_ptr<float>() + row,
        .rows = rows,
        .first = column,
        .columns = columns,
        .ignore_index = ignore_index,
    };
    check_launch(launch_cross_entropy_backward(params, dtype, current_stream()), "linear_cross_entropy_backward",
                 hidden, "hidden");
    dhidden.narrow(0, row, rows).add_(at::mm(logits, tile));
    at::Tensor out = dweight.narrow(0, column, columns);
    const at::Tensor rows_hidden = hidden.narrow(0, row, rows);
    if (single_block) {
      at::mm_out(out, logits.t(), rows_hidden);
      return;
    }
    const at::Tensor sum = dtile.narrow(0, 0, columns);
    if (row == 0) sum.zero_();
    sum.add_(at::mm(logits.t(), rows_hidden));
    if (row + rows == N) out.copy_(sum);
  });
  return {dhidden.to(hidden.scalar_type()), dweight};
}

}  // namespace
}  // namespace persimmon::cuda

TORCH_LIBRARY_IMPL(persimmon_ext, CUDA, m) {
  m.impl("linear_cross_entropy", TORCH_FN(persimmon::cuda::linear_cross_entropy));
  m.impl("linear_cross_entropy_backward", TORCH_FN(persimmon::cuda::linear_cross_entropy_backward));
}
