"""Command-line options that the benchmark programs share. The defaults are the shape of Persimmon-8B."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.checks import MismatchError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_checkpoint_options(
    parser: argparse.ArgumentParser, layers: int, vocab: int, vocab_help: str | None = None
) -> None:
    """Adds the sizes of a model that a program writes to disk, where, and what every program takes."""
    sizes = {"layers": layers, "hidden": 4096, "ffn": 16384, "heads": 64, "vocab": vocab}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=positive, default=default, help=vocab_help if name == "vocab" else None)
    parser.add_argument("--folder", type=Path, help="where to write; default: that of temporary files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the results there too")


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """With the options on the shape, where it runs, how long, and the JSON file."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{program}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--hidden", type=positive, default=4096, help="hidden size C, a multiple of the heads")
    made.add_argument("--ffn", type=positive, default=16384, help="intermediate size F")
    made.add_argument("--heads", type=positive, default=64)
    made.add_argument("--vocab", type=positive, default=262144)
    made.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    made.add_argument("--device", default="cpu")
    made.add_argument("--threads", type=positive, help="of the CPU; default: torch's own choice")
    made.add_argument("--repeats", type=positive, default=30, help="timed runs of each side")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--bandwidth-buffer", type=positive, metavar="MB", help="read between runs; default: 256, on CUDA 2048"
    )
    made.add_argument("--json", metavar="FILE", help="write the results there too")
    return made


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def prepare(arguments: argparse.Namespace) -> torch.device:
    """Sets the number of threads, the seed and the options whose default depends on the device; returns it."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.hidden % arguments.heads:
        raise SystemExit(f"--hidden {arguments.hidden} must be a multiple of --heads {arguments.heads}.")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda, and this torch finds no GPU.")
    if device.type == "cuda" and getattr(arguments, "profile", False):
        raise SystemExit("--profile measures the CPU's time only.")
    if arguments.bandwidth_buffer is None:
        arguments.bandwidth_buffer = 2048 if device.type == "cuda" else 256  # a copy on CUDA: 1 GiB to 1 GiB
    return device


def matmul_rate(arguments: argparse.Namespace, device: torch.device) -> float:
    """:func:`benchmarks.machine.matmul_rate` at the size that fits the options."""
    size = 2 * arguments.hidden if device.type == "cuda" else min(2048, arguments.hidden)
    return machine.matmul_rate(DTYPES[arguments.dtype], device, size)


def main(run: Callable[[], None]) -> None:
    """Runs a program; a wrong result ends it with a message and status 1."""
    try:
        with torch.no_grad():
            run()
    except MismatchError as mismatch:
        sys.exit(f"The results differ, so nothing is timed. {mismatch}")
