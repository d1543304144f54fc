"""Decoding with the whole model: ours against transformers on the same weights, one token a sequence and step.

Both models see the same random tokens; their logits must agree before anything is timed. Steps alternate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, models, options, scratch, step_profile, table
from benchmarks.checks import check_close
from benchmarks.timing import Sample, measure

#: Relative difference of logits that rounding explains, over the default's 4 layers; random 4-bit weights lose most.
LIMITS = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.08, "int8": 0.15, "int4": 0.8}
_CHECKED_STEPS = 3


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = options.parser("decode", __doc__)
    models.add_options(parser)
    parser.add_argument("--context", type=options.positive, default=32, help="tokens cached before the first step")
    parser.add_argument("--profile", action="store_true", help="print the share of our step's time that each op takes")
    return parser.parse_args(arguments)


class Side:
    """One model and its cache; each call of `step` is one token further."""

    def __init__(self, model: Any, prompt: Tensor, tokens: Tensor) -> None:
        self.model = model
        self.tokens = tokens  # [B, steps]
        self.done = 0
        output = model(prompt, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values

    def step(self) -> Tensor:
        """Returns the logits [B, V] after the next token; the choice of a token from them is part of the work."""
        token = self.tokens[:, self.done % self.tokens.shape[1], None]
        self.done += 1
        output = self.model(token, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1]
        logits.argmax(-1)
        return logits


class PlannedSide:
    """The steps of ``generate()`` on our model: its kernels without its modules. Every call of `step` is the same."""

    def __init__(self, model: Any, prompt: Tensor) -> None:
        self.token = prompt[:, -1:]
        self.past = prompt.shape[1]
        self.cache = model.lend_cache(len(prompt), self.past + 1)  # on CUDA: one whose steps are captured
        model(prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.plan = model.decode_plan(self.past + 1, self.cache)

    def step(self) -> Tensor:
        """Returns the likeliest next token [B], from logits in float32, as generate() chooses it."""
        with torch.inference_mode():
            logits = self.plan(self.token, self.past, None, self.cache)
        chosen = logits[:, -1].to(torch.float32, copy=True).argmax(-1)
        self.cache.truncate(self.past)
        return chosen


def compare(sides: dict[str, Side], limit: float) -> float | None:
    """Largest relative difference of the logits over the first steps; None where there is one side only."""
    found = None
    for step in range(_CHECKED_STEPS):
        logits = {name: side.step() for name, side in sides.items()}
        if "transformers" in logits:
            difference = check_close(f"logits of step {step}", logits["ours"], logits["transformers"], limit)
            found = max(found or 0.0, difference)
    return found


def bytes_read(model: Any, batch: int, cached: int, common_zeros: float) -> int:
    """Bytes of weights and cache that a step needs: rows of zero hidden units are not needed."""
    config, element = model.config, model.dtype.itemsize
    cache = 2 * config.num_hidden_layers * config.hidden_size * cached * batch * element
    second = models.weight_bytes(model, "dense_4h_to_h.")
    return int(models.weight_bytes(model) - second * common_zeros + cache)


def report(name: str, batch: int, sample: Sample, read: int, bandwidth: float) -> dict[str, Any]:
    rate = read / sample.median
    return {
        "side": name,
        "times": sample.as_dict(),
        "tokens_per_s": batch / sample.median,
        "bytes_read": read,
        "gb_per_s": rate / 1e9,
        "share_of_bandwidth": rate / bandwidth,
    }


def as_row(result: dict[str, Any]) -> dict[str, str]:
    return {
        "side": result["side"],
        "tokens/s": f"{result['tokens_per_s']:.2f}",
        "ms a step (p20–p80)": (
            f"{result['times']['median_s'] * 1e3:.1f} "
            f"({result['times']['p20_s'] * 1e3:.1f}–{result['times']['p80_s'] * 1e3:.1f})"
        ),
        "GB read": f"{result['bytes_read'] / 1e9:.3f}",
        "GB/s": f"{result['gb_per_s']:.1f}",
        "of bandwidth": f"{result['share_of_bandwidth']:.0%}",
    }


def run(arguments: list[str] | None = None) -> None:
    """The program; `arguments` as on the command line."""
    chosen = parse(arguments)
    device = options.prepare(chosen)
    result = machine.stamp("decode") | {"machine": machine.facts(device), "options": vars(chosen)}
    reader = machine.MemoryReader(device, chosen.bandwidth_buffer)
    pair = models.build(chosen, device)
    generator = torch.Generator().manual_seed(chosen.seed)
    prompt = models.random_ids(chosen.batch, chosen.context, chosen.vocab, generator).to(device)
    tokens = models.random_ids(chosen.batch, 256, chosen.vocab, generator).to(device)
    sides = {name: Side(model, prompt, tokens) for name, model in pair.sides().items()}
    limit = chosen.limit or LIMITS[chosen.quantization or chosen.dtype]
    with models.counted_zeros(pair.ours) as zeros:
        difference = compare(sides, limit)
        each, common = zeros()

    steps: dict[str, Callable[[], Any]] = {name: side.step for name, side in sides.items()}
    samples = measure(steps, device=device, repeats=chosen.repeats, warmup=2, flush=reader)
    ceilings = {"read_bytes_per_s": reader.bytes_per_s(samples.pop("flush"))}
    cached = chosen.context + sides["ours"].done - chosen.repeats // 2
    read = {"ours": bytes_read(pair.ours, chosen.batch, cached, common)}
    if pair.theirs is not None:
        read["transformers"] = bytes_read(pair.theirs, chosen.batch, cached, 0.0)
    rows = [
        report(name, chosen.batch, sample, read[name], ceilings["read_bytes_per_s"]) for name, sample in samples.items()
    ]
    result |= {
        "ceilings": ceilings,
        "zeros": each,
        "zeros_in_all_rows": common,
        "logits_difference": difference,
        "results": rows,
        "weight_bytes": models.weight_bytes(pair.ours),
        "peak_memory_bytes": machine.peak_memory(device),
    }
    if device.type == "cpu":
        result["scratch_bytes"] = scratch.peak_bytes(sides["ours"].step)
    if "transformers" in samples:
        result["ratio"] = samples["transformers"].median / samples["ours"].median
    if chosen.profile:
        steps = min(chosen.repeats, 10)
        result["profile"] = step_profile.shares(lambda: sides["ours"].step, steps)
        result["generate_profile"] = step_profile.shares(lambda: PlannedSide(pair.ours, prompt).step, steps)
    show(result)
    table.write_json(chosen.json, result)


def show(result: dict[str, Any]) -> None:
    """Prints everything that `run` found."""
    print(table.heading(result), end="\n\n")
    print(table.text([as_row(row) for row in result["results"]]))
    lines = []
    if "ratio" in result:
        lines.append(f"{result['ratio']:.2f} times transformers; logits differ by {result['logits_difference']:.4f}")
    lines.append(f"zeros: {result['zeros']:.1%} of activations, {result['zeros_in_all_rows']:.1%} in all rows at once")
    lines.append(
        f"weights without the embedding {result['weight_bytes'] / 1e9:.2f} GB; peak memory of the process "
        f"{result['peak_memory_bytes'] / 1e9:.2f} GB"
    )
    if "scratch_bytes" in result:
        lines.append(f"a step of ours holds up to {result['scratch_bytes'] / 1e6:.1f} MB beside weights and cache")
    print("\n" + "\n".join(lines))
    if "profile" in result:
        print("\nshare of our step's time:\n" + step_profile.text(result["profile"]))
        print("\nof a step of generate():\n" + step_profile.text(result["generate_profile"]))


if __name__ == "__main__":
    options.main(run)
