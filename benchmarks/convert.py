"""Converts a release of random weights, and looks into checkpoints of each format: the memory that it takes.

Makes a tar in the authors' format, by default of 2.7 GB with layers of the size of Persimmon-8B's, converts it, and
inspects the tar, the result, the same weights as torch.save writes them (now and before 1.6), and quantised to 8 bits.
Each in a process of its own, the files dropped from the page cache before; everything is removed at the end. With
--convert-only, a tar of any size that the disk holds twice will do: neither making nor converting it takes memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import machine, options, resident, table
from benchmarks.weights import Filler
from persimmon_ext import PersimmonConfig, PersimmonForCausalLM, embedded_checkpoint
from persimmon_ext.checkpoints import convert_adept
from persimmon_ext.checkpoints.adept_config import expected_shapes
from persimmon_ext.checkpoints.inspection import open_checkpoint, tensor_facts
from persimmon_ext.checkpoints.targets import parse_size
from persimmon_ext.zero_activations import zero_shares

_TEXT = "def read_lines(path):\n    return path"
_FILES_AT_A_TIME = 2  # checkpoints of the size of the release that are on the disk together
_TAR_BLOCK = 512
_PICKLE = "pytorch_model.bin"


def run(arguments: list[str] | None = None) -> None:
    """The program; `arguments` as on the command line. Makes the files, measures, prints and removes them."""
    chosen = parse(arguments)
    config = PersimmonConfig(
        vocab_size=chosen.vocab,
        hidden_size=chosen.hidden,
        intermediate_size=chosen.ffn,
        num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.heads,
        dtype="bfloat16",
    )
    sizes = [2 * torch.Size(shape).numel() for shape in expected_shapes(config).values()]
    size = sum(sizes)
    resident.check_room(
        chosen.folder, disk=_FILES_AT_A_TIME * size + max(sizes), memory=max(sizes) if chosen.convert_only else size
    )
    with tempfile.TemporaryDirectory(prefix="persimmon-convert-", dir=chosen.folder) as name:
        results = measure(Path(name), config, chosen)
    report = {
        **machine.stamp("convert"),
        "machine": machine.facts(torch.device("cpu")),
        "release_bytes": size,
        "largest_shard_bytes": results[0]["largest_shard_bytes"],
        "ceilings": {"read_bytes_per_s": size / min(row["read_s"] for row in results if row["form"] == "tar")},
        "results": results,
    }
    print(table.text(as_rows(report)))
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, config: PersimmonConfig, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """One result for the conversion, and one for each checkpoint that is looked into."""
    tar, converted = folder / "release.tar", folder / "converted"
    resident.in_process(write_release, tar, config, chosen.seed)
    results = [_row("convert", "tar", tar, convert, converted, chosen.max_shard_size)]
    if chosen.convert_only:
        return results
    results.append(_row("inspect", "tar", tar, inspect))
    tar.unlink()
    results.append(_row("inspect", "safetensors", converted, inspect))
    for form, write in (("torch.save", write_pickle), ("torch.save before 1.6", write_legacy), ("int8", write_int8)):
        other = folder / "other"
        resident.in_process(write, converted, other)
        results.append(_row("inspect", form, other, inspect))
        shutil.rmtree(other)
    return results


def _row(action: str, form: str, path: Path, function: Callable[..., dict[str, Any]], *arguments: Any) -> Any:
    read = resident.in_process(resident.read_once, path)
    return {"action": action, "form": form, "read_s": read, **resident.in_process(function, path, *arguments)}


def write_release(tar: Path, config: PersimmonConfig, seed: int) -> None:
    """A tar in the authors' format, of one rank. Its tensors are maps of one file of random numbers, of the size of the
    largest: all of them begin alike, and none takes memory."""
    shapes = expected_shapes(config)
    with tempfile.TemporaryDirectory(dir=tar.parent) as name:
        values = Path(name) / "values"
        largest = max(torch.Size(shape).numel() for shape in shapes.values())
        on_disk = torch.from_file(str(values), shared=True, size=largest, dtype=torch.bfloat16)
        Filler(seed).fill_(on_disk, spread=0.02)
        state = {
            name: torch.from_file(str(values), shared=True, size=torch.Size(shape).numel(), dtype=torch.bfloat16).view(
                shape
            )
            for name, shape in shapes.items()
        }
        _write_tar(tar, _authors_content(config, state))


def _authors_content(config: PersimmonConfig, state: dict[str, Tensor]) -> dict[str, Any]:
    """What the authors' library saves of a model."""
    head, embedding = state.pop("lm_head.weight"), state.pop("model.embed_tokens.weight")
    encoder = {
        name.removeprefix("model.").replace("self_attn", "self_attention"): tensor for name, tensor in state.items()
    }
    arguments = argparse.Namespace(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
        rotary_pct=0.5,
        untie_embeddings=True,
        qk_layernorm="weights_per_layer",
    )
    return {
        "args": arguments,
        "model": {
            "language_model": {"embedding": {"word_embeddings": {"weight": embedding}}, "encoder": encoder},
            "word_embeddings_for_head": {"weight": head},
        },
    }


def _write_tar(tar: Path, content: dict[str, Any]) -> None:
    """Saves straight into the tar; the header of the member comes last, when its size is known."""
    with tar.open("wb") as file:
        file.seek(_TAR_BLOCK)
        torch.save(content, file)
        header = tarfile.TarInfo("release/iter_0000001/mp_rank_00/model_optim_rng.pt")
        header.size = file.tell() - _TAR_BLOCK
        file.write(bytes(-header.size % _TAR_BLOCK))
        with tarfile.open(fileobj=file, mode="w") as archive:  # from here on
            archive.add(embedded_checkpoint() / "tokenizer.model", "release/adept_vocab.model")
        file.seek(0)
        file.write(header.tobuf(tarfile.GNU_FORMAT))


def convert(tar: Path, folder: Path, max_shard_size: str) -> dict[str, Any]:
    """Seconds and memory of the conversion, and the size of the largest file that it wrote."""
    _, facts = resident.watched(lambda: convert_adept(tar, folder, max_shard_size=max_shard_size, progress=False))
    return {"largest_shard_bytes": max(path.stat().st_size for path in folder.iterdir()), **facts}


def inspect(path: Path) -> dict[str, Any]:
    """Seconds and memory of reading all values of a checkpoint, and of running a text through it layer by layer."""

    def action() -> None:
        with open_checkpoint(path) as opened:
            for name, info in opened.infos.items():
                tensor_facts(name, info, opened.sources[name])
            if opened.tokenizer is not None:
                zero_shares(opened, torch.tensor(opened.tokenizer.encode(_TEXT)))

    _, facts = resident.watched(action)
    return facts


def write_pickle(converted: Path, folder: Path, zipped: bool = True) -> None:
    """The same weights in one file of torch.save."""
    folder.mkdir()
    state: dict[str, Tensor] = {}
    for file in sorted(converted.glob("*.safetensors")):
        state.update(load_file(file))
    torch.save(state, folder / _PICKLE, _use_new_zipfile_serialization=zipped)
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(converted / name, folder)


def write_legacy(converted: Path, folder: Path) -> None:
    """The same as torch before 1.6 wrote them."""
    write_pickle(converted, folder, zipped=False)


def write_int8(converted: Path, folder: Path) -> None:
    """The same weights, quantised."""
    PersimmonForCausalLM.from_pretrained(converted, quantization="int8", progress=False).save_pretrained(folder)
    shutil.copy(converted / "tokenizer.model", folder)


def as_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """One row of a table for each action."""
    shard = report["largest_shard_bytes"]
    return [
        {
            "action": row["action"],
            "checkpoint": f"{row['form']}, {report['release_bytes'] / 1e9:.2f} GB in 16 bits",
            "largest shard": f"{shard / 1e9:.2f} GB" if row["action"] == "convert" else "",
            "read once": f"{row['read_s']:.2f} s",
            "time": f"{row['seconds']:.2f} s",
            "peak resident": f"{row['peak_resident'] / 1e9:.2f} GB",
            "before": f"{row['resident_before'] / 1e9:.2f} GB",
            "beyond, of the largest shard": f"{(row['peak_resident'] - row['resident_before']) / shard:.3f}",
        }
        for row in report["results"]
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convert",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_checkpoint_options(parser, layers=4, vocab=65536, vocab_help="at least the 4096 of the tokenizer")
    parser.add_argument("--convert-only", action="store_true", help="inspect nothing")
    parser.add_argument("--max-shard-size", default="1GB", type=_size, metavar="SIZE")
    return parser.parse_args(arguments)


def _size(text: str) -> str:
    parse_size(text)
    return text


if __name__ == "__main__":
    run()
