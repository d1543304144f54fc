"""Models on int8 and int4 weights: what is replaced, results against the dequantised model, training, quality."""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpoint_helpers import assert_same_tensors
from helpers import assert_accurate, random_ids
from quantized_helpers import FORMATS, MLP, dequantized, make
from torch import Tensor

import persimmon_ext
from persimmon_ext import (
    PersimmonForCausalLM,
    PersimmonForSequenceClassification,
    PersimmonForTokenClassification,
    PersimmonTokenizer,
    quantization,
)
from persimmon_ext.cli import main
from persimmon_ext.layers import HiddenMajorLinear, Linear, can_fuse
from persimmon_ext.quantized_layers import QuantizedHiddenMajorLinear, QuantizedLinear


@pytest.fixture(params=FORMATS)
def name(request) -> str:
    return request.param


# ---- structure -------------------------------------------------------------------------------------------------------


def test_what_is_replaced(name):
    model = make()
    size = model.num_parameters()
    assert model.quantization is None
    assert model.quantize(name) is model
    assert model.quantization == name
    assert not any(isinstance(module, (Linear, HiddenMajorLinear)) for module in model.modules())
    layer = model.model.layers[1]
    for module in (layer.self_attn.query_key_value, layer.self_attn.dense, layer.mlp.dense_h_to_4h, model.lm_head):
        assert type(module) is QuantizedLinear
    assert type(layer.mlp.dense_4h_to_h) is QuantizedHiddenMajorLinear
    assert isinstance(model.model.embed_tokens, torch.nn.Embedding)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.num_parameters() == size
    assert name in repr(model)
    assert can_fuse(layer.mlp.dense_h_to_4h)
    assert can_fuse(layer.mlp.dense_4h_to_h)


@pytest.mark.parametrize(("name", "C", "F"), [("int8", 6, 10), ("int4", 128, 64)])
def test_buffers(name, C, F):
    wide = QuantizedLinear(C, F, name)
    back = QuantizedHiddenMajorLinear(F, C, name, bias=False)
    for layer, rows in ((wide, F), (back, F)):
        weight = torch.randn(layer.out_features, layer.in_features)
        layer.set_weight(weight)
        assert layer.codes.shape[0] == rows
        assert layer.scale.dtype == torch.float32
        assert tuple(map(tuple, (layer.codes.shape, layer.scale.shape))) == layer.buffer_shapes()
        assert layer.dequantize().shape == weight.shape
        assert (layer.dequantize() - weight).abs().max() < (0.03 if name == "int8" else 0.4) * weight.abs().max()
    assert back.bias is None


def test_tied_head_becomes_a_copy(name, tmp_path):
    model = make(tie_word_embeddings=True)
    embedding = model.model.embed_tokens.weight.clone()
    model.save_pretrained(tmp_path / "tied")
    model.quantize(name)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert not model.config.tie_word_embeddings
    assert (model.lm_head.dequantize() - embedding).abs().max() < 0.2 * embedding.abs().max()
    loaded = PersimmonForCausalLM.from_pretrained(tmp_path / "tied", quantization=name)
    assert_same_tensors(model, loaded)
    loaded.save_pretrained(tmp_path / "saved")
    assert_same_tensors(model, PersimmonForCausalLM.from_pretrained(tmp_path / "saved"))


def test_scales_and_codes_keep_their_dtypes(name):
    model = make().quantize(name)
    before = copy.deepcopy(model.state_dict())
    for change in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.type(torch.float32)):
        change(model)
        for key, tensor in model.state_dict().items():
            if key.endswith((".codes", ".scale")):
                assert tensor.dtype == before[key].dtype
                assert torch.equal(tensor, before[key]), key
    assert model.lm_head.scale.dtype == torch.float32
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    assert model.to("meta").lm_head.codes.is_meta


def test_copies(name):
    model = make().quantize(name)
    ids = random_ids(1, 5)
    expected = model(ids).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(ids).logits, expected)
        assert twin.lm_head.codes.data_ptr() != model.lm_head.codes.data_ptr()
    other = make(initializer_range=0.01).quantize(name)
    assert not torch.equal(other(ids).logits, expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids).logits, expected)


def test_large_weights_are_quantised_in_pieces(monkeypatch, name):
    weight = torch.randn(37, 128)
    functions = [getattr(quantization, f"quantize_{form}{name}") for form in ("", "hidden_major_")]
    weights = [weight, weight.T.contiguous().T] if name == "int8" else [weight, weight.T]
    whole = [function(w) for function, w in zip(functions, weights, strict=True)]
    monkeypatch.setattr(quantization, "_PIECE", 3 * 128)
    for function, w, expected in zip(functions, weights, whole, strict=True):
        for one, other in zip(function(w), expected, strict=True):
            assert torch.equal(one, other)
    weight[31, 5] = float("inf")
    with pytest.raises(ValueError, match="row 31"):
        functions[0](weight)


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 8, 16, 17])
def test_logits_are_those_of_the_dequantised_model(name, rows, dtype):
    """1 to 16 rows run kernels that read codes, more run torch's product on dequantised tiles."""
    model = make(dtype=dtype).quantize(name)
    ids = random_ids(1, rows)
    with torch.no_grad():
        exact = dequantized(model, torch.float64)(ids).logits
        eager = dequantized(model)(ids).logits
        assert_accurate(model(ids).logits, eager, exact)
        assert_accurate(model(ids.T, use_cache=False).logits, dequantized(model)(ids.T).logits, exact_of(model, ids.T))


def exact_of(model: Any, ids: Tensor) -> Tensor:
    return dequantized(model, torch.float64)(ids).logits


def test_steps_with_a_cache_equal_one_call(name):
    model = make().quantize(name)
    ids = random_ids(2, 20)
    with torch.no_grad():
        whole = model(ids).logits
        output = model(ids[:, :15])
        steps = [output.logits]
        for t in range(15, 20):
            output = model(ids[:, t : t + 1], past_key_values=output.past_key_values)
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=2e-5, rtol=2e-5)


def test_generate_is_that_of_the_dequantised_model(name):
    model = make().quantize(name)
    ids = random_ids(2, 7)
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": -1}
    assert torch.equal(model.generate(ids, **options), dequantized(model).generate(ids, **options))


def test_activation_without_a_kernel_and_no_norms_of_heads(name):
    model = make(hidden_act="gelu", qk_layernorm=False).quantize(name)
    ids = random_ids(1, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dequantized(model)(ids).logits, atol=1e-4, rtol=1e-4)


def test_losses(name):
    model = make().quantize(name)
    ids = random_ids(2, 9)
    expected = float(dequantized(model)(ids, labels=ids).loss.detach())
    assert float(model(ids, labels=ids).loss) == pytest.approx(expected, abs=1e-4)
    assert float(model(ids, labels=ids, skip_logits=True).loss) == pytest.approx(expected, abs=1e-4)


def test_autocast_and_float64(name):
    model = make().quantize(name)
    ids = random_ids(1, 6)
    with torch.no_grad():
        expected = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(ids).logits.float(), expected, atol=0.1, rtol=0.1)
        torch.testing.assert_close(model.double()(ids).logits.float(), expected, atol=1e-4, rtol=1e-4)


# ---- training --------------------------------------------------------------------------------------------------------


def test_gradient_of_the_input(name):
    model = make().quantize(name)
    embedded = model.model.embed_tokens(random_ids(2, 6))
    gradients = []
    for each in (model, dequantized(model)):
        x = embedded.clone().requires_grad_()
        each(inputs_embeds=x, labels=random_ids(2, 6)).loss.backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", [PersimmonForSequenceClassification, PersimmonForTokenClassification])
def test_a_head_on_a_quantised_decoder_can_be_trained(name, kind):
    model = make(kind, num_labels=3).quantize(name)
    assert isinstance(model.score, Linear)
    assert {key.split(".")[0] for key, p in model.named_parameters() if p.requires_grad} == {"score"}
    model.train()
    labels = torch.tensor([0, 2]) if kind is PersimmonForSequenceClassification else random_ids(2, 5, 3)
    model(random_ids(2, 5), labels=labels).loss.backward()
    assert model.score.weight.grad.abs().sum() > 0


def test_training_is_refused(name):
    model = make().quantize(name)
    ids = random_ids(1, 5)
    assert not model.training
    assert not model(ids, labels=ids).loss.requires_grad
    model.train()
    for options in ({}, {"skip_logits": True}):
        with pytest.raises(RuntimeError, match=f"quantised to {name}, for inference: the loss has no gradient"):
            model(ids, labels=ids, **options)
    with torch.no_grad():
        model(ids, labels=ids)
    with pytest.raises(AttributeError, match=r"no weight to read or train.*dequantize\(\)"):
        _ = model.lm_head.weight
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = model.lm_head.other


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_sizes_that_int4_does_not_take(tmp_path):
    model = make(hidden_size=96, intermediate_size=128)
    with pytest.raises(ValueError, match=r"query_key_value can't be quantised to int4: .*multiple of 64, got 96"):
        model.quantize("int4")
    assert model.quantization is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="multiple of 64, got 96"):
        PersimmonForCausalLM.from_pretrained(tmp_path, quantization="int4")
    assert model.quantize("int8").quantization == "int8"


def test_wrong_requests(tmp_path, name):
    model = make()
    for wrong, error in (("int3", ValueError), ("", ValueError), (8, TypeError)):
        with pytest.raises(error, match="must be one of int8, int4, got"):
            model.quantize(wrong)
    model.quantize(name)
    with pytest.raises(ValueError, match=f"quantised already, to {name}"):
        model.quantize("int8")
    with pytest.raises(RuntimeError, match=r"Missing key.*codes"):
        model.load_state_dict(make().state_dict())
    with pytest.raises(ValueError, match=r"state_dict does not fit .* it lacks .*codes"):
        model.save_pretrained(tmp_path / "x", state_dict=make().state_dict())
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match=r"shape \[131, 128\], got \[128, 131\]"):
        model.lm_head.set_weight(torch.zeros(128, 131))
    with pytest.raises(ValueError, match="no activation after it"):
        model.get_submodule(f"{MLP}.dense_4h_to_h")(torch.zeros(1, 256), relu2=True)


# ---- the embedded model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "loss", "kl", "agreement"), [("int8", 0.005, 0.001, 0.98), ("int4", 0.06, 0.04, 0.88)]
)
def test_quality(name, loss, kl, agreement):
    folder = persimmon_ext.embedded_checkpoint()
    tokenizer = PersimmonTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer.encode(inspect.getsource(argparse))[:4096]).view(8, 512)
    plain = PersimmonForCausalLM.from_pretrained(folder)
    quantized = PersimmonForCausalLM.from_pretrained(folder, quantization=name)
    with torch.no_grad():
        expected, found = plain(ids, labels=ids), quantized(ids, labels=ids)
    assert abs(float(found.loss - expected.loss)) < loss
    one, other = (output.logits.float().log_softmax(-1) for output in (expected, found))
    assert float(F.kl_div(other, one, reduction="sum", log_target=True)) / ids.numel() < kl
    assert float((one.argmax(-1) == other.argmax(-1)).float().mean()) > agreement


def test_command_line(name, capsys):
    arguments = ["generate", "def read(path):", "--max-new-tokens", "4", "--greedy", "--json", "--quantization", name]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] == 4
    assert main([*arguments[:-1], "int3"]) == 2
    assert "invalid choice: 'int3'" in capsys.readouterr().err
