"""Runs all the measurements of docs/performance.md, generation.md and serving.md, each in its own process, and leaves
their JSON files in a folder.

On Linux each waits until the machine's cores are idle, for at most --wait seconds: another process on one of two cores
more than doubles the time of what shares its work between both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks import options

#: The whole configuration, which fits into 24 GB of memory once.
WHOLE = ("--layers", "36", "--vocab", "262144", "--only-ours", "--profile")
RUNS: dict[str, tuple[str, ...]] = {
    "decode-zeros-0": ("decode", "--zeros", "0", "--profile"),
    "decode-zeros-50": ("decode", "--profile"),
    "decode-zeros-90": ("decode", "--zeros", "0.9", "--profile"),
    "decode-batch-4": ("decode", "--batch", "4", "--profile"),
    "decode-batch-8": ("decode", "--batch", "8", "--profile"),
    "decode-int8": ("decode", "--zeros", "0.5", "--quantization", "int8", "--profile"),
    "decode-int4": ("decode", "--zeros", "0.5", "--quantization", "int4", "--profile"),
    "decode-one-core": ("decode", "--threads", "1"),
    "decode-context-2048": ("decode", "--context", "2048", "--repeats", "15"),
    "decode-8b": ("decode", *WHOLE),
    "decode-8b-int8": ("decode", *WHOLE, "--quantization", "int8"),
    "prefill-256": ("prefill", "--profile"),
    "prefill-2048": ("prefill", "--tokens", "2048", "--repeats", "3", "--profile"),
    "kernels": ("kernels", "--seconds", "0.7"),
    "generate-overhead": ("generate", "--parts", "overhead", "ends", "--repeats", "5"),
    "generate-shape": ("generate", "--parts", "shape", "--layers", "4"),
    "generate-embedded": ("generate", "--parts", "embedded", "speculation", "drawn", "--new-tokens", "150"),
    "generate-forced": ("generate", "--parts", "editing", "quoting", "checking", "--new-tokens", "150"),
    "generate-soak": ("generate", "--parts", "soak", "--soak-tokens", "50400", "--threads", "1"),
    "serve": ("serve",),
}
_IDLE = 0.95
_LOOK_S = 2.0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("folder", help="gets a JSON file of each run")
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="RUN", default=list(RUNS), help=", ".join(RUNS))
    parser.add_argument("--wait", type=options.positive, default=600, help="at most so many seconds for idle cores")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="the rest goes to every program")
    return parser.parse_args(arguments)


def processor_times() -> tuple[int, int]:
    """Ticks that all cores have spent, idle and in all."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return ticks[3], sum(ticks)


def wait_until_idle(seconds: float) -> bool:
    """Whether the cores were idle for a moment within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        idle, total = processor_times()
        time.sleep(_LOOK_S)
        now_idle, now_total = processor_times()
        if now_idle - idle >= _IDLE * (now_total - total):
            return True
    return False


def run(arguments: list[str] | None = None) -> None:
    """The program; `arguments` as on the command line. Exits with 1 where a run failed, after the others."""
    chosen = parse(arguments)
    failed = []
    for name in tqdm(chosen.only, unit="run", file=sys.stderr, disable=None):
        if Path("/proc/stat").exists() and not wait_until_idle(chosen.wait):
            print(f"{name}: the cores were never idle; the figures suffer.", file=sys.stderr)
        program, *settings = RUNS[name]
        file = Path(chosen.folder) / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{program}", *settings, *chosen.options, "--json", str(file)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    run()
