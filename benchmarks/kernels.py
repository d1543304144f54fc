"""Every op against eager PyTorch, and against what the machine can do: its memory bandwidth or its matrix product rate.

Each op is checked first, then both sides are timed in turn, with cold caches unless --warm is given.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import (
    attention_cases,
    backward_cases,
    machine,
    normed_cases,
    options,
    product_cases,
    small_cases,
    table,
)
from benchmarks.cases import Case, Shapes
from benchmarks.timing import Sample, measure
from benchmarks.weights import Filler

Result = dict[str, Any]

#: Behind an op of which a side couldn't be timed on the device alone.
_HOST_MARK = " †"

CASES: dict[str, Callable[[Shapes], Iterator[Case]]] = {
    "layer_norm": small_cases.layer_norm,
    "layer_norm_backward": backward_cases.layer_norm_backward,
    "add_layer_norm": small_cases.add_layer_norm,
    "qk_norm_rope": small_cases.qk_norm_rope,
    "qk_norm_rope_backward": backward_cases.qk_norm_rope_backward,
    "qk_norm_rope_append_": small_cases.qk_norm_rope_append_,
    "attention": attention_cases.attention,
    "attention_backward": backward_cases.attention_backward,
    "decode_attention_": attention_cases.decode_attention_,
    "decode_attention_int8_": attention_cases.decode_attention_int8_,
    "linear": product_cases.linear,
    "sparse_linear": product_cases.sparse_linear,
    "norm_linear": normed_cases.norm_linear,
    "norm_mlp": normed_cases.norm_mlp,
    "relu2": small_cases.relu2,
    "relu2_backward": backward_cases.relu2_backward,
    "linear_cross_entropy": product_cases.linear_cross_entropy,
    "linear_cross_entropy_backward": backward_cases.linear_cross_entropy_backward,
    "sample": small_cases.sample,
    "linear_int8": product_cases.linear_int8,
    "linear_int4": product_cases.linear_int4,
    "sparse_linear_int8": product_cases.sparse_linear_int8,
    "sparse_linear_int4": product_cases.sparse_linear_int4,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = options.parser("kernels", __doc__)
    count = options.positive
    parser.add_argument("--rows", type=count, nargs="+", default=[1, 4, 8, 16], help="of the products with a weight")
    parser.add_argument("--tokens", type=count, nargs="+", default=[256, 2048], help="of what runs over a prompt")
    parser.add_argument("--context", type=count, nargs="+", default=[1024, 16384], help="cached, decode_attention*")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="OP", default=list(CASES), help="these ops")
    parser.add_argument("--warm", action="store_true", help="leave the caches as the run before left them")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the eager side as a further side")
    parser.add_argument("--seconds", type=float, default=4.0, help="at most so long for the runs of a case")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start no case after so long")
    return parser.parse_args(arguments)


def as_result(op: str, case: Case, dtype: str, samples: dict[str, Sample], ceilings: dict[str, float]) -> Result:
    """What the JSON file holds of one case."""
    ours = samples["ours"].median
    least = case.bytes / ceilings["read_bytes_per_s"], case.flops / ceilings["matmul_flops"]  # seconds
    best = min(sample.median for name, sample in samples.items() if name != "ours")
    return {
        "op": op,
        "shape": case.shape,
        "dtype": dtype,
        "bytes": case.bytes,
        "flops": case.flops,
        "sides": {name: sample.as_dict() for name, sample in samples.items()},
        "gb_per_s": case.bytes / ours / 1e9,
        "gflops": case.flops / ours / 1e9,
        "ceilings": ceilings,
        "share_of_ceiling": max(least) / ours,
        "times_eager": samples["eager"].median / ours,
        "times_best": best / ours,
    }


def as_row(result: dict[str, Any]) -> dict[str, str]:
    """The printed row of one result; `notes` says what the mark behind an op means."""
    return {
        "op": result["op"] + (_HOST_MARK if _unqueued(result) else ""),
        "shape": result["shape"],
        "dtype": result["dtype"],
        "µs (p20–p80)": table.microseconds(result["sides"]["ours"]),
        "MB": f"{result['bytes'] / 1e6:.2f}",
        "GB/s": f"{result['gb_per_s']:.1f}",
        "GFLOP/s": f"{result['gflops']:.0f}" if result["flops"] else "",
        "of ceiling": f"{result['share_of_ceiling']:.0%}",
        "× eager": f"{result['times_eager']:.2f}",
        "× best": f"{result['times_best']:.2f}",
    }


def _unqueued(result: Result) -> list[str]:
    """The sides whose times have the host's part in them."""
    return [name for name, side in result["sides"].items() if not side.get("queued", True)]


def notes(results: Iterable[Result]) -> list[str]:
    """What to print below the rows of `results`: one line for each marked one."""
    return [
        f"{_HOST_MARK.strip()} {result['op']}, {result['shape']}: timed with the host's part: {', '.join(sides)}."
        for result in results
        if (sides := _unqueued(result))
    ]


def run(arguments: list[str] | None = None) -> None:
    """The program; `arguments` as on the command line."""
    chosen = parse(arguments)
    device = options.prepare(chosen)
    result = machine.stamp("kernels") | {"machine": machine.facts(device), "options": vars(chosen)}
    matmul = options.matmul_rate(chosen, device)
    shapes = Shapes(
        hidden=chosen.hidden,
        ffn=chosen.ffn,
        heads=chosen.heads,
        vocab=chosen.vocab,
        dtype=options.DTYPES[chosen.dtype],
        device=device,
        rows=tuple(chosen.rows),
        tokens=tuple(chosen.tokens),
        contexts=tuple(chosen.context),
        filler=Filler(chosen.seed, device),
    )
    reader = machine.MemoryReader(device, chosen.bandwidth_buffer)
    read = measure({"read": reader}, device=device, repeats=8, queued=True)["read"]
    results: list[Result] = []
    left_out: list[str] = []
    end = None if chosen.budget is None else time.perf_counter() + chosen.budget

    def out_of_time() -> bool:
        return end is not None and time.perf_counter() > end

    bar = tqdm(chosen.only, unit="op", file=sys.stderr, disable=None)
    for op in bar:
        bar.set_description(op)
        if out_of_time():  # before its first case is built, which may take gigabytes
            left_out.append(op)
            continue
        for case in CASES[op](shapes):
            if out_of_time():
                left_out.append(op)
                break
            case.check()
            sides = {"ours": case.ours, "eager": case.eager, **case.peers}
            if chosen.compile:
                sides["compile"] = torch.compile(case.eager, dynamic=False)
            samples = measure(
                sides,
                device=device,
                repeats=chosen.repeats,
                flush=None if chosen.warm else reader,
                rest=None if chosen.warm else reader.rest,
                budget_s=chosen.seconds,
                warmup=2,
                queued=True,
            )
            ceilings = {
                "read_bytes_per_s": reader.bytes_per_s(samples.pop("flush", read)),
                "matmul_flops": matmul,
            }
            results.append(as_result(op, case, chosen.dtype, samples, ceilings))
    if not results:
        why = f"--budget {chosen.budget} leaves no time for a case" if left_out else "These options leave no case"
        raise SystemExit(f"{why}.")
    bandwidths = sorted(row["ceilings"]["read_bytes_per_s"] for row in results)
    typical = {"read_bytes_per_s": bandwidths[len(bandwidths) // 2], "matmul_flops": matmul}
    result |= {"ceilings": typical, "results": results, "left_out": left_out}
    print(table.heading(result), end="\n\n")
    print("\n".join([table.text([as_row(row) for row in results]), *notes(results)]))
    if left_out:
        print(f"\nOut of time, so at least a part is missing of {', '.join(left_out)}.")
    table.write_json(chosen.json, result)


if __name__ == "__main__":
    options.main(run)
