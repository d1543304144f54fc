"""Decoding with the whole model: ours against transformers on the same weights, one token a sequence and step.

Both models see the same random tokens; their logits must agree before anything is timed. Steps alternate.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, models, options, scratch, step_profile, table
from benchmarks.checks import check_close
from benchmarks.timing import Sample, measure
from persimmon_ext.decode_graphs import GraphedPlan

#: Relative difference of logits that rounding explains, over the default's 4 layers; random 4-bit weights lose most.
LIMITS = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.08, "int8": 0.15, "int4": 0.8}
#: Our side without its modules; "ours" calls the model.
PLANNED = "ours in generate()"
_CHECKED_STEPS, _WARM_UP, _MOST_PROFILED = 3, 2, 10


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
        self.tokens = tokens  # [B, any number], used in turn
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
    """As `Side`, by the steps of ``generate()``: our model's kernels without its modules, on CUDA replayed."""

    def __init__(self, model: Any, prompt: Tensor, tokens: Tensor, steps: int) -> None:
        """`steps`: how many will be run, for which the cache has room."""
        self.tokens = tokens  # [B, any number], used in turn
        self.done, self.past = 0, prompt.shape[1]
        self.cache = model.lend_cache(len(prompt), self.past + steps)  # on CUDA: one whose steps are captured
        model(prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.plan = model.decode_plan(self.past + steps, self.cache)

    @property
    def is_captured(self) -> bool:
        """Whether the steps were replays of a CUDA graph."""
        return isinstance(self.plan, GraphedPlan) and self.plan.is_captured

    def step(self) -> Tensor:
        """Returns the logits [B, V] in float32, from which generate() chooses, as part of the work, the next token."""
        token = self.tokens[:, self.done % self.tokens.shape[1], None]
        with torch.inference_mode():
            logits: Tensor = self.plan(token, self.past + self.done, None, self.cache)
        self.done += 1
        logits = logits[:, -1].to(torch.float32, copy=True)
        logits.argmax(-1)
        return logits


def compare(sides: dict[str, Side | PlannedSide], limit: float, own_limit: float) -> float | None:
    """Largest relative difference of our logits from transformers' over the first steps; None without transformers.

    `own_limit`: for the two ways of ours, which share their weights, also where these are quantised.
    """
    found = None
    for step in range(_CHECKED_STEPS):
        logits = {name: side.step() for name, side in sides.items()}
        if "transformers" in logits:
            difference = check_close(f"logits of step {step}", logits["ours"], logits["transformers"], limit)
            found = max(found or 0.0, difference)
        check_close(f"logits of {PLANNED} at step {step}", logits[PLANNED], logits["ours"], own_limit)
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
    planned = PlannedSide(pair.ours, prompt, tokens, _CHECKED_STEPS + _WARM_UP + chosen.repeats)
    sides: dict[str, Side | PlannedSide] = {
        name: Side(model, prompt, tokens) for name, model in pair.sides().items()
    } | {PLANNED: planned}
    limit = chosen.limit or LIMITS[chosen.quantization or chosen.dtype]
    with models.counted_zeros(pair.ours) as zeros:
        difference = compare(sides, limit, chosen.limit or LIMITS[chosen.dtype])
        each, common = zeros()

    steps = {name: side.step for name, side in sides.items()}
    samples = measure(steps, device=device, repeats=chosen.repeats, warmup=_WARM_UP, flush=reader)
    ceilings = {"read_bytes_per_s": reader.bytes_per_s(samples.pop("flush"))}
    cached = chosen.context + sides["ours"].done - chosen.repeats // 2
    read = dict.fromkeys(("ours", PLANNED), bytes_read(pair.ours, chosen.batch, cached, common))
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
        "captured": planned.is_captured,
        "results": rows,
        "weight_bytes": models.weight_bytes(pair.ours),
        "peak_memory_bytes": machine.peak_memory(device),
    }
    if device.type == "cpu":
        result["scratch_bytes"] = scratch.peak_bytes(sides["ours"].step)
    if "transformers" in samples:
        result["ratio"] = samples["transformers"].median / samples["ours"].median
    if chosen.profile:
        count = min(chosen.repeats, _MOST_PROFILED)
        result["profile"] = step_profile.shares(lambda: sides["ours"].step, count)
        result["generate_profile"] = step_profile.shares(
            lambda: PlannedSide(pair.ours, prompt, tokens, 1 + count).step, count
        )
    show(result)
    table.write_json(chosen.json, result)


def show(result: dict[str, Any]) -> None:
    """Prints everything that `run` found."""
    print(table.heading(result), end="\n\n")
    print(table.text([as_row(row) for row in result["results"]]))
    lines = []
    if "ratio" in result:
        lines.append(f"{result['ratio']:.2f} times transformers; logits differ by {result['logits_difference']:.4f}")
    if result["captured"]:
        lines.append(f"the steps of {PLANNED} were replays of a CUDA graph")
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
