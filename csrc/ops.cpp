// Every operator's schema, once, and the Python module that reports how this build was made.
// Kernels are registered next to their checks: csrc/cpu/<op>.cpp and csrc/cuda/bindings/<op>.cpp.
// Dimensions: B batch, T new tokens, S cached length, H heads, D head dim, R rotary dim, C hidden, F ffn, V vocab.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include "cpu/huge_pages.h"
#include "cpu/isa.h"

TORCH_LIBRARY(persimmon_ext, m) {
  // Norms over the last dimension.
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def("layer_norm_backward(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)");
  m.def("add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)");

  // qkv [B, T, H, 3, D] -> q, k, v, each [B, H, T, D]; cos, sin fp32 [B or 1, T, R/2].
  m.def(
      "qk_norm_rope(Tensor qkv, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias, "
      "Tensor cos, Tensor sin, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "qk_norm_rope_backward(Tensor dq, Tensor dk, Tensor dv, Tensor qkv, Tensor q_weight, Tensor k_weight, "
      "Tensor cos, Tensor sin, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "qk_norm_rope_append_(Tensor qkv, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias, "
      "Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, float eps) -> Tensor");

  // q [B, H, T, D]; k, v [B, H, S, D]; start, length, offset int64 [B]. out [B, T, H, D], lse fp32 [B, H, T].
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? start, Tensor? length, Tensor? offset, float scale) "
      "-> (Tensor, Tensor)");
  m.def(
      "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor? start, Tensor? length, Tensor? offset, float scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "decode_attention_(Tensor qkv, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias, "
      "Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, Tensor? start, "
      "float eps, float scale) -> Tensor");
  // The same on int8 codes [B, H, S, D] with a scale fp32 [B, H, S, 1] for each row.
  m.def(
      "decode_attention_int8_(Tensor qkv, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias, "
      "Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) k_scale, Tensor(d!) v_scale, "
      "Tensor slots, Tensor? start, float eps, float scale) -> Tensor");

  // y = act(x W^T + bias) + residual. sparse_*: only the rows of the hidden-major W^T whose activation is not zero.
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool relu2) -> Tensor");
  m.def("sparse_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual) -> Tensor");
  m.def("linear_int8(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? residual, bool relu2) -> Tensor");
  m.def("linear_int4(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? residual, bool relu2) -> Tensor");
  m.def("sparse_linear_int8(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? residual) -> Tensor");
  m.def("sparse_linear_int4(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? residual) -> Tensor");
  // layer_norm(x) W^T + bias, and x + the MLP of layer_norm(x): for a decode step, without gradients. A weight's dtype
  // says whether it is elements, int8 or int4; only codes have a scale. down is hidden-major, as in the sparse
  // products.
  m.def(
      "norm_linear(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight, Tensor? scale, "
      "Tensor? bias) -> Tensor");
  m.def(
      "norm_mlp(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor up, Tensor? up_scale, "
      "Tensor? up_bias, Tensor down, Tensor? down_scale, Tensor? down_bias) -> Tensor");
  m.def("relu2(Tensor x, Tensor? bias) -> Tensor");
  m.def("relu2_backward(Tensor grad, Tensor x, Tensor? bias) -> Tensor");

  // hidden [N, C], weight [V, C], labels int64 [N] -> loss fp32 [N], log-sum-exp fp32 [N]; no [N, V] tensor exists.
  m.def("linear_cross_entropy(Tensor hidden, Tensor weight, Tensor labels, int ignore_index) -> (Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_backward(Tensor dloss, Tensor hidden, Tensor weight, Tensor labels, Tensor lse, "
      "int ignore_index) -> (Tensor, Tensor)");

  // logits [B, V], rng int64 [B, 2] = (seed, counter) -> token int64 [B].
  m.def("sample(Tensor logits, Tensor rng, float temperature, int top_k, float top_p, float min_p) -> Tensor");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of persimmon_ext: importing it registers torch.ops.persimmon_ext.*";
  m.attr("version") = PERSIMMON_VERSION;
  m.attr("torch_version") = PERSIMMON_TORCH_VERSION;
  m.attr("compiler") = PERSIMMON_COMPILER;
  m.attr("cuda_version") = PERSIMMON_CUDA_VERSION;              // "" when built without CUDA
  m.attr("cuda_architectures") = PERSIMMON_CUDA_ARCHITECTURES;  // e.g. "8.0;9.0a+PTX"
  m.def("cpu_isa", [] { return persimmon::cpu::name(persimmon::cpu::isa()); });
  m.def("advise_huge_pages", persimmon::cpu::advise_huge_pages, pybind11::arg("address"), pybind11::arg("bytes"));
  m.def("cpu_isas", [] {
    std::vector<std::string> names;
    for (auto isa : persimmon::cpu::kIsas) {
      if (persimmon::cpu::supported(isa)) names.emplace_back(persimmon::cpu::name(isa));
    }
    return names;
  });
}
