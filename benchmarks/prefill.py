"""Prefill with the whole model: ours against transformers on the same weights, a prompt at a time into a new cache.

The logits of the last token must agree before anything is timed. Runs alternate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, models, options, step_profile, table
from benchmarks.checks import check_close
from benchmarks.decode import LIMITS
from benchmarks.timing import Sample, measure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = options.parser("prefill", __doc__)
    models.add_options(parser)
    parser.set_defaults(repeats=5)
    parser.add_argument("--tokens", type=options.positive, default=256, help="length of the prompt")
    parser.add_argument("--profile", action="store_true", help="print the share of our time that each op takes")
    return parser.parse_args(arguments)


def read_prompt(model: Any, prompt: Tensor) -> Tensor:
    """The logits [B, V] after the prompt [B, T]."""
    logits: Tensor = model(prompt, use_cache=True, logits_to_keep=1).logits[:, -1]
    return logits


def flops(config: Any, batch: int, tokens: int) -> int:
    """Of the products of a prompt, with the head for one position and attention over the visible keys."""
    C, F = config.hidden_size, config.intermediate_size
    layer = 2 * tokens * (4 * C * C + 2 * C * F) + 4 * C * tokens * (tokens + 1) // 2
    return int(batch * (config.num_hidden_layers * layer + 2 * C * config.vocab_size))


def report(name: str, count: int, sample: Sample, work: int, rate: float) -> dict[str, Any]:
    return {
        "side": name,
        "times": sample.as_dict(),
        "tokens_per_s": count / sample.median,
        "gflops": work / sample.median / 1e9,
        "share_of_matmul": work / sample.median / rate,
    }


def as_row(result: dict[str, Any]) -> dict[str, str]:
    times = result["times"]
    return {
        "side": result["side"],
        "tokens/s": f"{result['tokens_per_s']:.1f}",
        "ms (p20–p80)": f"{times['median_s'] * 1e3:.0f} ({times['p20_s'] * 1e3:.0f}–{times['p80_s'] * 1e3:.0f})",
        "GFLOP/s": f"{result['gflops']:.0f}",
        "of matmul rate": f"{result['share_of_matmul']:.0%}",
    }


def run(arguments: list[str] | None = None) -> None:
    """The program; `arguments` as on the command line."""
    chosen = parse(arguments)
    device = options.prepare(chosen)
    result = machine.stamp("prefill") | {"machine": machine.facts(device), "options": vars(chosen)}
    pair = models.build(chosen, device)
    generator = torch.Generator().manual_seed(chosen.seed)
    prompt = models.random_ids(chosen.batch, chosen.tokens, chosen.vocab, generator).to(device)
    sides: dict[str, Callable[[], Tensor]] = {
        name: partial(read_prompt, model, prompt) for name, model in pair.sides().items()
    }
    with models.counted_zeros(pair.ours) as zeros:
        logits = {name: side() for name, side in sides.items()}
        each, _ = zeros()
    if "transformers" in logits:
        limit = chosen.limit or LIMITS[chosen.quantization or chosen.dtype]
        result["logits_difference"] = check_close("logits", logits["ours"], logits["transformers"], limit)

    samples = measure(sides, device=device, repeats=chosen.repeats, warmup=0)
    ceilings = {"matmul_flops": options.matmul_rate(chosen, device)}
    work = flops(pair.ours.config, chosen.batch, chosen.tokens)
    count = chosen.batch * chosen.tokens
    result |= {
        "ceilings": ceilings,
        "zeros": each,
        "results": [report(name, count, sample, work, ceilings["matmul_flops"]) for name, sample in samples.items()],
        "peak_memory_bytes": machine.peak_memory(device),
    }
    if "transformers" in samples:
        result["ratio"] = samples["transformers"].median / samples["ours"].median
    if chosen.profile:
        result["profile"] = step_profile.shares(lambda: sides["ours"], 1)
    show(result)
    table.write_json(chosen.json, result)


def show(result: dict[str, Any]) -> None:
    """Prints everything that `run` found."""
    print(table.heading(result), end="\n\n")
    print(table.text([as_row(row) for row in result["results"]]))
    lines = []
    if "ratio" in result:
        lines.append(f"{result['ratio']:.2f} times transformers; logits differ by {result['logits_difference']:.4f}")
    lines.append(f"zeros: {result['zeros']:.1%}; peak memory of the process {result['peak_memory_bytes'] / 1e9:.2f} GB")
    print("\n" + "\n".join(lines))
    if "profile" in result:
        print("\nshare of our time:\n" + step_profile.text(result["profile"]))


if __name__ == "__main__":
    options.main(run)
