"""Measures what quantisation costs: loss, KL divergence and top-1 agreement against the unquantised model.

    python examples/quantization_quality.py                     # the embedded model, about a minute
    python examples/quantization_quality.py --alternatives      # also int4 formats that there are no kernels for
    python examples/quantization_quality.py --model FOLDER --json quality.json

The text is the standard library's files that the embedded model was not trained on (train_tokenizer.split_files).
KL is the mean over tokens of KL(unquantised || quantised) in nats; agreement is the share of tokens whose likeliest
next token is the same; error is the quantised weights' relative root mean square error.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from train_tiny import CONTEXT, batch_at, tokenize
from train_tokenizer import split_files

import persimmon_ext
from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer
from persimmon_ext.layers import HiddenMajorLinear
from persimmon_ext.quantization import FORMATS
from persimmon_ext.quantized_layers import QuantizedLinear, quantizable
from persimmon_ext.reference import INT4_GROUP

BATCH = 8
SCALE_BYTES = 4


def asymmetric_int4(groups: Tensor) -> Tensor:
    """16 levels from each group's smallest to its largest weight; groups [..., 64]."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / 15).clamp_min(1e-30)
    return ((groups - low) / step).round().clamp(0, 15) * step + low


def plain_symmetric_int4(groups: Tensor) -> Tensor:
    """Levels -7..7 times largest magnitude / 7; groups [..., 64]."""
    step = (groups.abs().amax(-1, keepdim=True) / 7).clamp_min(1e-30)
    return (groups / step).round().clamp(-7, 7) * step


def searched_int4(groups: Tensor) -> Tensor:
    """The int4 format with the scale, among 12 of each sign, that makes each group's squared error least."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    largest = torch.where(largest == 0, 1.0, largest)
    best, least = groups, torch.full_like(largest, math.inf)
    for factor in torch.linspace(0.67, 1.0, 12).tolist():
        for sign in (1, -1):
            step = largest * factor * sign
            rounded = (groups / step).round().clamp(-8, 7) * step
            error = (rounded - groups).square().sum(-1, keepdim=True)
            best = torch.where(error < least, rounded, best)
            least = torch.minimum(error, least)
    return best


def smaller_groups_int4(groups: Tensor) -> Tensor:
    """The int4 format in groups of 32, which takes as many bytes as the asymmetric one; groups [..., 64]."""
    halves = groups.unflatten(-1, (2, INT4_GROUP // 2))
    step = halves.gather(-1, halves.abs().argmax(-1, keepdim=True)) / -8
    step = torch.where(step == 0, 1.0, step)
    return ((halves / step).round().clamp(-8, 7) * step).flatten(-2)


#: Name -> (values that a group becomes, bytes a group). Scales, and the offset of the asymmetric one, are float32.
ALTERNATIVES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "int4, levels -7..7": (plain_symmetric_int4, INT4_GROUP // 2 + SCALE_BYTES),
    "int4, asymmetric": (asymmetric_int4, INT4_GROUP // 2 + 2 * SCALE_BYTES),
    "int4, groups of 32": (smaller_groups_int4, INT4_GROUP // 2 + 2 * SCALE_BYTES),
    "int4, scale searched": (searched_int4, INT4_GROUP // 2 + SCALE_BYTES),
}


def simulate(model: PersimmonForCausalLM, round_groups: Callable[[Tensor], Tensor]) -> PersimmonForCausalLM:
    """A copy of the model with its linear weights rounded, grouped as int4 groups them."""
    model = copy.deepcopy(model)
    for name in quantizable(model):
        layer = model.get_submodule(name)
        weight = layer.weight.detach()
        rows = weight.T if isinstance(layer, HiddenMajorLinear) else weight
        rounded = round_groups(rows.float().unflatten(-1, (-1, INT4_GROUP))).flatten(-2)
        weight.copy_(rounded.T if isinstance(layer, HiddenMajorLinear) else rounded)
    return model


def linear_weight(layer: torch.nn.Module) -> Tensor:
    return layer.dequantize() if isinstance(layer, QuantizedLinear) else layer.weight.detach().float()


def weight_error(model: PersimmonForCausalLM, exact: PersimmonForCausalLM) -> float:
    """Relative root mean square error of all quantised weights together."""
    wrong = total = 0.0
    for name in quantizable(exact):
        weight = linear_weight(exact.get_submodule(name))
        wrong += float((linear_weight(model.get_submodule(name)) - weight).square().sum())
        total += float(weight.square().sum())
    return math.sqrt(wrong / total)


def linear_bytes(model: PersimmonForCausalLM, exact: PersimmonForCausalLM) -> int:
    """Bytes of all linear weights, scales included."""
    total = 0
    for name in quantizable(exact):
        layer = model.get_submodule(name)
        total += layer.codes.nbytes + layer.scale.nbytes if isinstance(layer, QuantizedLinear) else layer.weight.nbytes
    return total


def sequences(tokenizer: PersimmonTokenizer, tokens: int) -> Iterator[Tensor]:
    """Batches [B, CONTEXT] of consecutive held-out text, about `tokens` of them in all."""
    _, held_out = split_files()
    ids = tokenize(held_out, tokenizer)
    starts = torch.arange(0, len(ids) - CONTEXT, CONTEXT - 1)
    kept = starts[:: max(1, len(ids) // tokens)]  # from all files rather than from the first ones
    for some in kept.split(BATCH):
        yield batch_at(ids, some, tokenizer.bos_token_id)


@torch.no_grad()
def compare(
    models: dict[str, PersimmonForCausalLM], batches: list[Tensor], baseline: str
) -> dict[str, dict[str, float]]:
    """Loss, KL and agreement of each model with `baseline`, by name."""
    sums = {name: {"loss": 0.0, "kl": 0.0, "agreement": 0.0} for name in models}
    for rows in tqdm(batches, desc="measuring", unit="batch", delay=2):
        reference = models[baseline](rows, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        for name, model in models.items():
            found = reference
            if name != baseline:
                found = model(rows, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            sums[name]["loss"] += float(F.nll_loss(found.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
            sums[name]["kl"] += float(F.kl_div(found, reference, reduction="sum", log_target=True))
            sums[name]["agreement"] += float((found.argmax(-1) == reference.argmax(-1)).sum())
    tokens = sum(rows[:, 1:].numel() for rows in batches)
    return {name: {key: value / tokens for key, value in measured.items()} for name, measured in sums.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in aligned columns."""
    lines = [("", "linear weights", "loss", "increase", "KL", "top-1 agreement", "error")]
    for row in rows:
        lines.append(
            (
                row["name"],
                f"{row['linear_bytes'] / 1e6:.2f} MB",
                f"{row['loss']:.4f}",
                f"{row['loss'] - rows[0]['loss']:+.4f}",
                f"{row['kl']:.5f}",
                f"{row['agreement']:.2%}",
                f"{row['weight_error']:.2%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what quantisation costs.")
    parser.add_argument("--model", type=Path, help="checkpoint folder; the embedded one by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's")
    parser.add_argument("--tokens", type=int, default=60_000, help="held-out tokens to measure on, about")
    parser.add_argument("--alternatives", action="store_true", help="also int4 formats that there are no kernels for")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    if arguments.tokens < CONTEXT:
        parser.error(f"--tokens must be at least {CONTEXT}, got {arguments.tokens}")
    folder = arguments.model or persimmon_ext.embedded_checkpoint()
    tokenizer = PersimmonTokenizer.from_pretrained(folder)
    exact = PersimmonForCausalLM.from_pretrained(folder, dtype=arguments.dtype)
    baseline = str(exact.dtype).removeprefix("torch.")
    models = {baseline: exact}
    if exact.dtype != torch.float32:  # how far rounding alone moves the figures
        models["float32"] = copy.deepcopy(exact).float()
    models |= {name: copy.deepcopy(exact).quantize(name) for name in FORMATS}
    sizes = {name: linear_bytes(model, exact) for name, model in models.items()}
    if arguments.alternatives:
        weights = sum(exact.get_submodule(name).weight.numel() for name in quantizable(exact))
        for name, (round_groups, group_bytes) in ALTERNATIVES.items():
            models[name] = simulate(exact, round_groups)
            sizes[name] = weights // INT4_GROUP * group_bytes

    batches = list(sequences(tokenizer, arguments.tokens))
    measured = compare(models, batches, baseline)
    rows = [
        {
            "name": name,
            "linear_bytes": sizes[name],
            **{key: round(value, 6) for key, value in measured[name].items()},
            "weight_error": round(weight_error(model, exact), 6),
        }
        for name, model in models.items()
    ]
    print(table(rows))
    if arguments.json is not None:
        report = {
            "command": "python " + " ".join(sys.argv),
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {persimmon_ext._C.cpu_isa()}",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "model": "embedded" if arguments.model is None else str(arguments.model),
            "tokens": sum(batch[:, 1:].numel() for batch in batches),
            "rows": rows,
        }
        partial = arguments.json.with_name(f"{arguments.json.name}.partial")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(partial, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
