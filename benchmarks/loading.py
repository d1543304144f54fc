"""Loads a checkpoint of random weights: peak resident memory beside its size, and time beside reading its files once.

Writes a Hugging Face folder of bf16 weights, by default of the size of Persimmon-8B (18.7 GB), measures each of reading
and loading it in a process of its own, the files dropped from the page cache before, and removes the folder.

Resident memory is what the kernel counts for the process: the peak is VmHWM of /proc/PID/status, the split between
anonymous memory and pages of mapped files is that of the fullest of samples taken every 20 ms. The page cache that
reading leaves behind belongs to no process and isn't counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, options, table
from benchmarks.weights import Filler
from persimmon_ext import PersimmonConfig, PersimmonForCausalLM
from persimmon_ext.checkpoints.adept_config import expected_shapes
from persimmon_ext.checkpoints.safetensors_writer import Source, write_safetensors
from persimmon_ext.checkpoints.writing import shard_names, split, write_index

_SHARD_BYTES = 5 * 10**9
_BLOCK = 2**22
_SAMPLE_S = 0.02
_SPARE_DISK = 1.02
_SPARE_MEMORY = 1.08
_COUNTS = ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem")


def run(arguments: list[str] | None = None) -> None:
    """The program; `arguments` as on the command line. Makes the folder, measures, prints and removes the folder."""
    chosen = parse(arguments)
    config = PersimmonConfig(
        vocab_size=chosen.vocab,
        hidden_size=chosen.hidden,
        intermediate_size=chosen.ffn,
        num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.heads,
        dtype="bfloat16",
    )
    sources = random_sources(config, chosen.seed)
    size = sum(source.nbytes for source in sources.values())
    check_room(chosen.folder, size)
    results = []
    with tempfile.TemporaryDirectory(prefix="persimmon-loading-", dir=chosen.folder) as name:
        folder = Path(name)
        write_checkpoint(folder, config, sources)
        for _ in range(chosen.rounds):
            read = in_process(read_once, folder)
            results.append({**read, **in_process(load, folder, chosen.quantization)})
    report = {
        **machine.stamp("loading"),
        "machine": machine.facts(torch.device("cpu")),
        "checkpoint_bytes": size,
        "quantization": chosen.quantization,
        "ceilings": {"read_bytes_per_s": size / min(row["read_s"] for row in results)},
        "results": results,
    }
    print(table.text(as_rows(report)))
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def random_sources(config: PersimmonConfig, seed: int) -> dict[str, Source]:
    """Random bf16 tensors of the shapes that `config` asks for, made as they are written."""
    filler = Filler(seed)
    block = torch.empty(_BLOCK, dtype=torch.bfloat16)

    def source(shape: tuple[int, ...]) -> Source:
        numel = torch.Size(shape).numel()

        def pieces() -> Iterator[Tensor]:
            for first in range(0, numel, _BLOCK):
                yield filler.fill_(block[: min(_BLOCK, numel - first)], spread=0.02)

        return Source(shape, torch.bfloat16, pieces)

    return {name: source(shape) for name, shape in expected_shapes(config).items()}


def write_checkpoint(folder: Path, config: PersimmonConfig, sources: dict[str, Source]) -> None:
    """Writes `sources` in shards of 5 GB, and has them on the disk when it returns."""
    shards = split(sources, _SHARD_BYTES)
    contents = dict(zip(shard_names(len(shards)), shards, strict=True))
    for name, shard in contents.items():
        write_safetensors(folder / name, {key: sources[key] for key in shard})
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    if len(shards) > 1:
        write_index(folder / "model.safetensors.index.json", sources, contents)
    config.save_pretrained(folder)


def read_once(folder: Path) -> dict[str, Any]:
    """Seconds to read all files into one small buffer, one after the other."""
    buffer = memoryview(bytearray(2 * _BLOCK))
    begin = time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return {"read_s": time.perf_counter() - begin}


def load(folder: Path, quantization: str | None) -> dict[str, Any]:
    """Seconds of from_pretrained, and the process's memory before and at most."""
    before = _memory()
    samples: list[dict[str, int]] = [before]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            samples.append(_memory())

    thread = threading.Thread(target=sample)
    thread.start()
    begin = time.perf_counter()
    model = PersimmonForCausalLM.from_pretrained(folder, quantization=quantization, progress=False)
    seconds = time.perf_counter() - begin
    done.set()
    thread.join()
    fullest = max(samples, key=lambda counts: counts["VmRSS"])
    return {
        "load_s": seconds,
        "model_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "resident_before": before["VmRSS"],
        "peak_resident": _memory()["VmHWM"],
        "at_fullest": {name: fullest[name] for name in ("RssAnon", "RssFile", "RssShmem")},
    }


def as_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """One row of a table for each round."""
    size = report["checkpoint_bytes"]
    return [
        {
            "checkpoint": f"{size / 1e9:.2f} GB",
            "loaded as": report["quantization"] or "bfloat16",
            "read once": f"{row['read_s']:.2f} s",
            "from_pretrained": f"{row['load_s']:.2f} s",
            "of reading": f"{row['load_s'] / row['read_s']:.2f}",
            "peak resident": f"{row['peak_resident'] / 1e9:.2f} GB",
            "of checkpoint": f"{row['peak_resident'] / size:.3f}",
            "anonymous": f"{row['at_fullest']['RssAnon'] / 1e9:.2f} GB",
            "mapped files": f"{row['at_fullest']['RssFile'] / 1e9:.2f} GB",
            "before loading": f"{row['resident_before'] / 1e9:.2f} GB",
        }
        for row in report["results"]
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--layers", type=options.positive, default=36)
    parser.add_argument("--hidden", type=options.positive, default=4096)
    parser.add_argument("--ffn", type=options.positive, default=16384)
    parser.add_argument("--heads", type=options.positive, default=64)
    parser.add_argument("--vocab", type=options.positive, default=262144)
    parser.add_argument("--quantization", choices=("int8", "int4"), help="quantise while loading")
    parser.add_argument("--rounds", type=options.positive, default=1)
    parser.add_argument("--folder", type=Path, help="where to write; default: that of temporary files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser.parse_args(arguments)


def check_room(folder: Path | None, size: int) -> None:
    """Exits with a sentence where there is too little disk or memory."""
    place = Path(tempfile.gettempdir()) if folder is None else folder
    free = shutil.disk_usage(place).free
    if free < size * _SPARE_DISK:
        sys.exit(f"The checkpoint needs {size / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB free.")
    available = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    if available < size * _SPARE_MEMORY:
        sys.exit(f"Loading needs {size * _SPARE_MEMORY / 1e9:.1f} GB, and {available / 1e9:.1f} GB are available.")


def in_process(function: Callable[..., dict[str, Any]], folder: Path, *arguments: Any) -> dict[str, Any]:
    """The result of function(folder, …) in a fresh process, the folder's files dropped from the page cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, folder, *arguments).result()


def _memory() -> dict[str, int]:
    """Bytes by the names that /proc/PID/status gives them."""
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) << 10 for words in fields if words and words[0][:-1] in _COUNTS}


if __name__ == "__main__":
    run()
