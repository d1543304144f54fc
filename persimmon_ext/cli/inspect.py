"""Looks into a checkpoint without loading it: a Hugging Face folder, a file of weights, or the authors' release.

Ends with status 1 where it can't be read, or has what makes it useless: NaNs, infinities, a tokenizer that doesn't fit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.inspection import Opened, TensorFacts, open_checkpoint, tensor_facts
from persimmon_ext.checkpoints.targets import dtype_name
from persimmon_ext.cli.errors import UsageError
from persimmon_ext.tokenizer import PersimmonTokenizer
from persimmon_ext.zero_activations import zero_shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("path", type=Path, metavar="PATH", help="the checkpoint")
    parser.add_argument("--quick", action="store_true", help="don't read values: no counts of NaNs and zero rows")
    parser.add_argument("--text", metavar="TEXT", help="also run TEXT, one layer at a time, and count zero activations")
    parser.add_argument("--file", type=Path, metavar="FILE", help="as --text, of a file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Prints the facts, for a reader or as JSON. Raises CheckpointError, at the end, for what is wrong with them."""
    text = _text(arguments)
    with open_checkpoint(arguments.path) as opened:
        if text is not None and opened.tokenizer is None:
            raise UsageError(f"{arguments.path} has no tokenizer, so it can't run a text.")
        total = sum(info.nbytes for info in opened.infos.values())
        tensors = []
        with tqdm(desc="Reading", total=total, unit="B", unit_scale=True, disable=arguments.quick, delay=2) as bar:
            for name, info in opened.infos.items():
                tensors.append(tensor_facts(name, info, None if arguments.quick else opened.sources[name]))
                bar.update(info.nbytes)
        shares = None
        if text is not None and opened.tokenizer is not None:
            shares = zero_shares(opened, torch.tensor(opened.tokenizer.encode(text)))
        facts = gather(opened, tensors, shares)
    print(json.dumps(facts, indent=2) if arguments.json else render(facts))
    if facts["problems"]:
        raise CheckpointError(f"{arguments.path} has {listing(facts['problems'])}.")


def gather(opened: Opened, tensors: list[TensorFacts], shares: list[float] | None) -> dict[str, Any]:
    """Everything the command tells, as plain Python values."""
    return {
        "path": str(opened.path),
        "format": opened.format,
        "parameters": sum(facts.parameters for facts in tensors if not facts.name.endswith(".scale")),
        "bytes": sum(facts.nbytes for facts in tensors),
        "tensors": [
            {
                "name": facts.name,
                "shape": list(facts.shape),
                "dtype": dtype_name(facts.dtype),
                "bytes": facts.nbytes,
                "file": facts.file.name,
                "nans": facts.nans,
                "infinities": facts.infinities,
                "zero_rows": facts.zero_rows,
            }
            for facts in tensors
        ],
        "config": None if opened.config is None else opened.config.to_dict(),
        "tokenizer": None if opened.tokenizer is None else _tokenizer_facts(opened.tokenizer, opened),
        "zero_activations": shares,
        "problems": _problems(opened, tensors),
    }


def render(facts: dict[str, Any]) -> str:
    """Lays out what `gather` returned."""
    lines = [
        f"{facts['path']}: {facts['format']}",
        f"{facts['parameters']:,} parameters, {facts['bytes']:,} bytes, {len(facts['tensors'])} tensors",
        "",
    ]
    header = ("tensor", "shape", "dtype", "bytes", "NaN", "Inf", "zero rows", "file")
    table = [header]
    for tensor in facts["tensors"]:
        counts = ("" if tensor[key] is None else str(tensor[key]) for key in ("nans", "infinities", "zero_rows"))
        shape = " x ".join(map(str, tensor["shape"]))
        table.append((tensor["name"], shape, tensor["dtype"], f"{tensor['bytes']:,}", *counts, tensor["file"]))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if facts["config"] is not None:
        lines += ["", "config", *(f"  {key}: {json.dumps(value)}" for key, value in sorted(facts["config"].items()))]
    if facts["tokenizer"] is not None:
        lines += ["", "tokenizer", *(f"  {key}: {value}" for key, value in facts["tokenizer"].items())]
    if facts["zero_activations"] is not None:
        shares = facts["zero_activations"]
        lines += ["", f"zero activations: {sum(shares) / len(shares):.1%} on average"]
        lines += [f"  layer {number}: {share:.1%}" for number, share in enumerate(shares)]
    if facts["problems"]:
        lines += ["", "problems", *(f"  {problem}" for problem in facts["problems"])]
    return "\n".join(lines)


def _tokenizer_facts(tokenizer: PersimmonTokenizer, opened: Opened) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "type": tokenizer.vocabulary.model_type,
        "tokens": len(tokenizer),
        "special": tokenizer.special_tokens.special,
        "bos": tokenizer.bos_token,
        "eos": tokenizer.eos_token,
        "never produced": len(tokenizer.vocabulary) - len(tokenizer.vocabulary.producible()),
    }
    if opened.config is not None:
        facts["rows of the embedding"] = opened.config.vocab_size
    return facts


def _problems(opened: Opened, tensors: list[TensorFacts]) -> list[str]:
    """What makes the checkpoint useless."""
    problems = []
    for facts in tensors:
        if facts.nans or facts.infinities:
            problems.append(f"{facts.nans} NaNs and {facts.infinities} infinities in {facts.name}")
    if opened.tokenizer is not None and opened.config is not None:
        tokens, rows = len(opened.tokenizer), opened.config.vocab_size
        if tokens > rows:
            problems.append(f"a tokenizer of {tokens} tokens, which don't fit its embedding of {rows} rows")
    return problems


def _text(arguments: argparse.Namespace) -> str | None:
    if arguments.text is not None and arguments.file is not None:
        raise UsageError("--text and --file were both given; leave out one of them.")
    if arguments.file is None:
        return None if arguments.text is None else str(arguments.text)
    try:
        content: str = arguments.file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{arguments.file} is not UTF-8 text: byte {error.start} is wrong.") from None
    return content
