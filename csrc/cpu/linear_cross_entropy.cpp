#include "kernels/linear_cross_entropy.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "binding.h"
#include "product_type.h"

namespace persimmon::cpu {
namespace {

// The largest tile of logits: 2^23 of them, 32 MiB in fp32. Fixed, so that sums never depend on the machine.
constexpr int64_t kTileRows = 4096, kTileColumns = 2048;

void check(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels, int64_t ignore_index) {
  dtype_of(hidden, "hidden");
  check_dim(hidden, "hidden", 2);
  check_dim(weight, "weight", 2);
  check_like(weight, "weight", hidden, "hidden", {weight.size(0), hidden.size(1)});
  check_same_device(labels, "labels", hidden, "hidden");
  check_dtype(labels, "labels", at::kLong);
  check_shape(labels, "labels", {hidden.size(0)});
  const at::Tensor contiguous = labels.contiguous();
  const int64_t* label = contiguous.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < labels.size(0); ++row) {
    TORCH_CHECK_INDEX(label[row] == ignore_index || (label[row] >= 0 && label[row] < weight.size(0)),
                      "labels must be below the vocabulary's size ", weight.size(0), " and not negative (or ",
                      ignore_index, "), got ", label[row], " in row ", row, ".");
  }
}

// Calls body(first row, rows, first column, columns, logits, weight of the tile), a tile of the vocabulary at a time.
// hidden, logits and the tile's weight are in the dtype that products are computed in.
template <class Body>
void for_each_tile(const at::Tensor& hidden, const at::Tensor& weight, Body&& body) {
  const int64_t N = hidden.size(0), V = weight.size(0);
  const at::Tensor buffer = at::empty({std::min(N, kTileRows) * std::min(V, kTileColumns)}, hidden.options());
  for (int64_t column = 0; column < V; column += kTileColumns) {
    const int64_t columns = std::min(kTileColumns, V - column);
    const at::Tensor tile = weight.narrow(0, column, columns).to(hidden.scalar_type());
    for (int64_t row = 0; row < N; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, N - row);
      at::Tensor logits = buffer.narrow(0, 0, rows * columns).view({rows, columns});
      at::mm_out(logits, hidden.narrow(0, row, rows), tile.t());
      body(row, rows, column, columns, logits, tile);
    }
  }
}

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& hidden_, const at::Tensor& weight,
                                                        const at::Tensor& labels_, int64_t ignore_index) {
  check(hidden_, weight, labels_, ignore_index);
  const at::Tensor hidden = hidden_.contiguous().to(product_type(hidden_.scalar_type())), labels = labels_.contiguous();
  const auto options = hidden.options().dtype(at::kFloat);
  const at::Tensor max = at::full({hidden.size(0)}, -INFINITY, options);
  const at::Tensor sum = at::zeros({hidden.size(0)}, options), target = at::zeros({hidden.size(0)}, options);
  for_each_tile(
      hidden, weight,
      [&](int64_t row, int64_t rows, int64_t column, int64_t columns, const at::Tensor& logits, const at::Tensor&) {
        const CrossEntropyParams params{
            .logits = logits.const_data_ptr(),
            .labels = labels.const_data_ptr<int64_t>() + row,
            .max = max.mutable_data_ptr<float>() + row,
            .sum = sum.mutable_data_ptr<float>() + row,
            .target = target.mutable_data_ptr<float>() + row,
            .first = column,
            .columns = columns,
            .dtype = dtype_of(logits, "logits"),
        };
        parallel(cross_entropy_kernel(), params, rows, columns * logits.element_size());
      });
  const at::Tensor lse = sum.log().add_(max.masked_fill(max.isinf(), 0));
  return {lse.sub(target).masked_fill_(labels.eq(ignore_index), 0), lse};
}

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_backward(const at::Tensor& dloss_, const at::Tensor& hidden_,
                                                                 const at::Tensor& weight, const at::Tensor& labels_,
                                                                 const at::Tensor& lse_, int64_t ignore_index) {
  check(hidden_, weight, labels_, ignore_index);
  const int64_t N = hidden_.size(0), C = hidden_.size(1);
  check_dtype(dloss_, "dloss", at::kFloat);
  check_shape(dloss_, "dloss", {N});
  check_dtype(lse_, "lse", at::kFloat);
  check_shape(lse_, "lse", {N});
  const at::Tensor hidden = hidden_.contiguous().to(product_type(hidden_.scalar_type())), labels = labels_.contiguous();
  const at::Tensor dloss = dloss_.contiguous(), lse = lse_.contiguous();
  const auto options = hidden.options().dtype(at::kFloat);
  const at::Tensor dhidden = at::zeros({N, C}, options);
  const at::Tensor dweight = at::empty(weight.sizes(), weight.options());
  if (N == 0) dweight.zero_();
  // A tile of dweight that several blocks of rows add to, or in another dtype than the products', goes through fp32.
  const bool direct = N <= kTileRows && hidden.scalar_type() == weight.scalar_type();
  const at::Tensor dtile = !direct ? at::empty({std::min(weight.size(0), kTileColumns), C}, options) : at::Tensor();
  for_each_tile(hidden, weight,
                [&](int64_t row, int64_t rows, int64_t column, int64_t columns, const at::Tensor& logits,
                    const at::Tensor& tile) {
                  const CrossEntropyBackwardParams params{
                      .logits = logits.mutable_data_ptr(),
                      .labels = labels.const_data_ptr<int64_t>() + row,
                      .dloss = dloss.const_data_ptr<float>() + row,
                      .lse = lse.const_data_ptr<float>() + row,
                      .first = column,
                      .columns = columns,
                      .ignore_index = ignore_index,
                      .dtype = dtype_of(logits, "logits"),
                  };
                  parallel(cross_entropy_backward_kernel(), params, rows, columns * logits.element_size());
                  // A tile's product is rounded to the products' dtype once; the tiles are added in fp32.
                  dhidden.narrow(0, row, rows).add_(at::mm(logits, tile));
                  at::Tensor out = dweight.narrow(0, column, columns);
                  const at::Tensor rows_hidden = hidden.narrow(0, row, rows);
                  if (direct) {
                    at::mm_out(out, logits.t(), rows_hidden);
                    return;
                  }
                  at::Tensor sum = dtile.narrow(0, 0, columns);
                  if (row == 0) sum.zero_();
                  sum.add_(at::mm(logits.t(), rows_hidden));
                  if (row + rows == N) out.copy_(sum);
                });
  return {dhidden.to(hidden_.scalar_type()), dweight};
}

TORCH_LIBRARY_IMPL(persimmon_ext, CPU, m) {
  m.impl("linear_cross_entropy", linear_cross_entropy);
  m.impl("linear_cross_entropy_backward", linear_cross_entropy_backward);
}

}  // namespace
}  // namespace persimmon::cpu
