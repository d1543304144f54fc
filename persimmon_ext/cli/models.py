"""The arguments of commands that run a model: which one, on what, and how its tokens are chosen."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import torch

from persimmon_ext.assets import embedded_checkpoint
from persimmon_ext.cli import values
from persimmon_ext.cli.errors import UsageError
from persimmon_ext.heads import PersimmonForCausalLM
from persimmon_ext.outputs import Speculation
from persimmon_ext.quantization import FORMATS
from persimmon_ext.tokenizer import PersimmonTokenizer

_DEFAULT_TEMPERATURE = 0.8  # the embedded model is small: greedy search would repeat itself
_DEFAULT_TOP_P = 0.95
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `load` reads."""
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a checkpoint; the embedded one by default")
    parser.add_argument(
        "--dtype", type=values.dtype, metavar="NAME", help="such as bfloat16; default: the checkpoint's"
    )
    parser.add_argument(
        "--quantization", choices=tuple(FORMATS), help="quantise the weights while loading; default: as they are"
    )
    parser.add_argument(
        "--device", type=values.device, metavar="NAME", help="default: cuda if there is a GPU, else cpu"
    )
    parser.add_argument("--threads", type=values.integer(1), metavar="N", help="CPU threads")


def add_generation_arguments(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Adds what `generation_settings` reads."""
    parser.add_argument(
        "--max-new-tokens",
        type=values.integer(1),
        default=max_new_tokens,
        metavar="N",
        help=f"default: {max_new_tokens}",
    )
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token instead of sampling")
    parser.add_argument(
        "--temperature", type=values.number(), metavar="X", help=f"above 0; default: {_DEFAULT_TEMPERATURE}"
    )
    parser.add_argument("--top-k", type=values.integer(0), metavar="N", help="sample from the N likeliest; 0: from all")
    parser.add_argument(
        "--top-p",
        type=values.number(0, 1),
        metavar="X",
        help=f"sample from the likeliest tokens of probability X in sum; default: {_DEFAULT_TOP_P}",
    )
    parser.add_argument(
        "--min-p",
        type=values.number(0, 1, inclusive=True),
        metavar="X",
        help="sample from tokens at least X times as likely as the likeliest",
    )
    parser.add_argument(
        "--repetition-penalty", type=values.number(), default=1.0, metavar="X", help="above 1: repeat less; default: 1"
    )
    parser.add_argument("--seed", type=values.integer(), metavar="N", help="the same seed gives the same text")
    parser.add_argument(
        "--prompt-lookup",
        type=values.integer(1),
        metavar="N",
        help="guess up to N tokens from what the text has said before; faster where it repeats, and never different",
    )
    parser.add_argument("--cache", choices=("static", "dynamic", "int8"), help="how keys and values are kept")


def load(arguments: argparse.Namespace) -> tuple[Any, PersimmonTokenizer]:
    """The model and its tokenizer.

    Raises RuntimeError for a GPU that isn't there, ValueError for another model's tokenizer, and what loading raises.
    """
    device = arguments.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"There is no GPU that torch {torch.__version__} can use; leave out --device {device}.")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    folder = arguments.model
    if folder is None:
        folder = embedded_checkpoint()
        print("Using the small embedded model; name another with --model.", file=sys.stderr)
    tokenizer = PersimmonTokenizer.from_pretrained(folder)
    model = PersimmonForCausalLM.from_pretrained(
        folder, dtype=arguments.dtype, device=device, quantization=arguments.quantization
    )
    return model, tokenizer


def describe(speculation: Speculation) -> str:
    """How drafting went, in a few words."""
    return (
        f"{speculation.accepted} of {speculation.drafted} drafted tokens accepted ({speculation.acceptance_rate:.0%})"
    )


def generation_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments for ``generate``. Raises UsageError for options that exclude each other."""
    given = {name: getattr(arguments, name) for name in _SAMPLING if getattr(arguments, name) is not None}
    common = {
        "max_new_tokens": arguments.max_new_tokens,
        "repetition_penalty": arguments.repetition_penalty,
        "prompt_lookup_num_tokens": arguments.prompt_lookup,
        "cache_implementation": arguments.cache,
    }
    if arguments.greedy:
        if given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise UsageError(f"--greedy takes the likeliest token, so {option} has no meaning; leave out one of them.")
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "min_p": None, **common}
    defaults = {"temperature": _DEFAULT_TEMPERATURE, "top_k": 0, "top_p": _DEFAULT_TOP_P}
    # A seed of our own, so that it can be told.
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    return {"do_sample": True, "seed": seed, **defaults, **given, **common}
