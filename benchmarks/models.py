"""Our model and transformers' on the same random weights, which exist once wherever both can use one layout."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

import persimmon_ext
from benchmarks import options
from benchmarks.weights import Filler, copied
from persimmon_ext.huge_pages import on_huge_pages
from persimmon_ext.meta_models import without_memory

_HIDDEN_MAJOR = "dense_4h_to_h.weight"


@dataclass
class Pair:
    """Both models; `theirs` is None where only ours is measured."""

    ours: persimmon_ext.PersimmonForCausalLM
    theirs: nn.Module | None

    def sides(self) -> dict[str, Any]:
        return {"ours": self.ours} | ({} if self.theirs is None else {"transformers": self.theirs})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the programs that run whole models."""
    parser.set_defaults(vocab=32768)
    parser.add_argument("--layers", type=options.positive, default=4)
    parser.add_argument("--batch", type=options.positive, default=1)
    parser.add_argument("--zeros", type=share, help="share of zero activations; default: leave what the weights give")
    parser.add_argument("--quantization", choices=["int8", "int4"], help="of our weights; transformers keeps 16 bits")
    parser.add_argument("--attention", default="sdpa", help="transformers' attention implementation")
    parser.add_argument("--only-ours", action="store_true", help="no transformers: for models that fit only once")
    parser.add_argument("--limit", type=float, help="relative difference of the logits that is allowed")


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 1")
    return value


def build(arguments: argparse.Namespace, device: torch.device) -> Pair:
    """Both models with random weights, calibrated to `--zeros` and quantised as asked for."""
    if arguments.quantization and not hasattr(persimmon_ext.PersimmonForCausalLM, "quantize"):
        raise SystemExit(f"--quantization {arguments.quantization}: this version has no quantised models.")
    settings = {
        "vocab_size": arguments.vocab,
        "hidden_size": arguments.hidden,
        "intermediate_size": arguments.ffn,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
    }
    dtype = options.DTYPES[arguments.dtype]
    config = persimmon_ext.PersimmonConfig(**settings)
    with without_memory():
        ours = persimmon_ext.PersimmonForCausalLM(config)
    ours.model.rotary_emb = type(ours.model.rotary_emb)(config).to(device)
    theirs = None if arguments.only_ours else _transformers_model(settings, arguments.attention, device)
    filler = Filler(arguments.seed, device)
    names = [name for name, _ in ours.named_parameters()]
    for name in tqdm(names, desc="weights", unit="tensor", delay=2, disable=None):
        shape = ours.get_parameter(name).shape
        tensor = _random_parameter(name, on_huge_pages(torch.empty(shape, dtype=dtype, device=device)), filler, config)
        hidden_major = name.endswith(_HIDDEN_MAJOR)
        _replace(ours, name, copied(tensor.T).T if hidden_major else tensor)
        if theirs is not None:
            _replace(theirs, name, tensor)
    pair = Pair(ours.eval(), None if theirs is None else theirs.eval())
    if arguments.zeros is not None:
        calibrate(pair, arguments.zeros, arguments.vocab, filler.generator)
    if arguments.quantization:
        pair.ours.quantize(arguments.quantization)
    return pair


def _transformers_model(settings: dict[str, Any], attention: str, device: torch.device) -> nn.Module:
    config = transformers.PersimmonConfig(**settings)
    config._attn_implementation = attention
    with torch.device("meta"):
        model = transformers.PersimmonForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model


def _random_parameter(name: str, tensor: Tensor, filler: Filler, config: persimmon_ext.PersimmonConfig) -> Tensor:
    if "layernorm" in name:
        return tensor.fill_(1.0 if name.endswith("weight") else 0.0)
    if name.endswith("bias"):
        return tensor.zero_()
    return filler.fill_(tensor, config.initializer_range)


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, last = name.rpartition(".")
    setattr(model.get_submodule(module), last, nn.Parameter(tensor, requires_grad=False))


def _of_each_layer(model: persimmon_ext.PersimmonForCausalLM, name: str) -> list[nn.Module]:
    return [layer.get_submodule(name) for layer in model.model.layers]


def random_ids(batch: int, length: int, vocab: int, generator: torch.Generator) -> Tensor:
    return torch.randint(vocab, (batch, length), generator=generator)


def calibrate(pair: Pair, zeros: float, vocab: int, generator: torch.Generator, tokens: int = 64) -> None:
    """Shifts the bias of each MLP's first product, which both models share, so that `zeros` of its outputs on random
    tokens are negative: their squared ReLU is zero, exactly as in a model that was trained to be sparse.

    The shift is a quantile of the pre-activations; for no zeros at all, it lifts the lowest by one standard deviation
    above zero. Layers are set in the order they run, as each changes the input of the next.
    """

    def shift(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        bias = module.get_parameter("bias")
        values = nn.functional.linear(inputs[0], module.get_parameter("weight"), bias).float().flatten()
        if zeros > 0:
            edge = values.kthvalue(max(1, round(zeros * values.numel()))).values
        else:
            edge = values.min() - values.std()
        bias.sub_(edge)

    handles = [module.register_forward_pre_hook(shift) for module in _of_each_layer(pair.ours, "mlp.dense_h_to_4h")]
    ids = random_ids(1, tokens, vocab, generator).to(pair.ours.device)
    pair.ours(ids, use_cache=False, logits_to_keep=1)
    for handle in handles:
        handle.remove()


@contextmanager
def counted_zeros(model: persimmon_ext.PersimmonForCausalLM) -> Iterator[Callable[[], tuple[float, float]]]:
    """Within it, the MLPs' activations are counted; the function yielded returns the share of zeros, and the share of
    hidden units that are zero in every row of a call."""
    each: list[float] = []
    common: list[float] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        zero = inputs[0].flatten(0, -2) == 0
        each.append(float(zero.float().mean()))
        common.append(float(zero.all(0).float().mean()))

    handles = [module.register_forward_pre_hook(count) for module in _of_each_layer(model, "mlp.dense_4h_to_h")]
    try:
        yield lambda: (sum(each) / len(each), sum(common) / len(common))
    finally:
        for handle in handles:
            handle.remove()


def weight_bytes(model: nn.Module, part: str = "") -> int:
    """Bytes of all parameters and buffers whose name contains `part`, but for the embedding, of which a step reads only
    single rows."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return sum(t.nbytes for name, t in tensors.items() if part in name and "embed_tokens" not in name)
