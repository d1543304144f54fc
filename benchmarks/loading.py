"""Loads a checkpoint of random weights: peak resident memory beside its size, and time beside reading its files once.

Writes a Hugging Face folder of bf16 weights, by default of the size of Persimmon-8B (18.7 GB), measures each of reading
and loading it in a process of its own, the files dropped from the page cache before, and removes the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, options, resident, table
from benchmarks.weights import Filler
from persimmon_ext import PersimmonConfig, PersimmonForCausalLM
from persimmon_ext.checkpoints.adept_config import expected_shapes
from persimmon_ext.checkpoints.safetensors_writer import Source, write_safetensors
from persimmon_ext.checkpoints.writing import shard_names, split, write_index

_SHARD_BYTES = 5 * 10**9
_BLOCK = 2**22


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
    resident.check_room(chosen.folder, disk=size, memory=size)
    results = []
    with tempfile.TemporaryDirectory(prefix="persimmon-loading-", dir=chosen.folder) as name:
        folder = Path(name)
        write_checkpoint(folder, config, sources)
        for _ in range(chosen.rounds):
            read = {"read_s": resident.in_process(resident.read_once, folder)}
            results.append({**read, **resident.in_process(load, folder, chosen.quantization, chosen.verify)})
    report = {
        **machine.stamp("loading"),
        "machine": machine.facts(torch.device("cpu")),
        "checkpoint_bytes": size,
        "quantization": chosen.quantization,
        "verify": chosen.verify,
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


def load(folder: Path, quantization: str | None, verify: bool) -> dict[str, Any]:
    """Seconds of from_pretrained, and the process's memory before and at most."""

    def action() -> PersimmonForCausalLM:
        return PersimmonForCausalLM.from_pretrained(folder, quantization=quantization, verify=verify, progress=False)

    model, facts = resident.watched(action)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"load_s": facts.pop("seconds"), "model_bytes": size, **facts}


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
    options.add_checkpoint_options(parser, layers=36, vocab=262144)
    parser.add_argument("--quantization", choices=("int8", "int4"), help="quantise while loading")
    parser.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True, help="compare with the checksums on the way"
    )
    parser.add_argument("--rounds", type=options.positive, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run()
