"""Continues a prompt and prints the text as it comes; tokens per second follow on stderr."""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from persimmon_ext.assets import embedded_checkpoint
from persimmon_ext.cli import values
from persimmon_ext.cli.errors import UsageError
from persimmon_ext.heads import PersimmonForCausalLM
from persimmon_ext.quantization import FORMATS
from persimmon_ext.text_stream import TextStreamer
from persimmon_ext.tokenizer import PersimmonTokenizer

_DEFAULT_TEMPERATURE = 0.8  # the embedded model is small: greedy search would repeat itself
_DEFAULT_TOP_P = 0.95
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


@dataclass
class Result:
    """What came out; `seconds` covers the prompt and the new tokens, not loading."""

    prompt_tokens: int
    tokens: list[int]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second."""
        return len(self.tokens) / self.seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to continue")
    parser.add_argument("--file", metavar="FILE", help="read the prompt from FILE, or from stdin if FILE is -")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a checkpoint; the embedded one by default")
    parser.add_argument("--max-new-tokens", type=values.integer(1), default=128, metavar="N", help="default: 128")
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
        "--dtype", type=values.dtype, metavar="NAME", help="such as bfloat16; default: the checkpoint's"
    )
    parser.add_argument(
        "--quantization", choices=tuple(FORMATS), help="quantise the weights while loading; default: as they are"
    )
    parser.add_argument(
        "--device", type=values.device, metavar="NAME", help="default: cuda if there is a GPU, else cpu"
    )
    parser.add_argument("--threads", type=values.integer(1), metavar="N", help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead, with the figures")


def run(arguments: argparse.Namespace) -> None:
    """Generates and prints. Raises UsageError, or what reading, loading and generating raise."""
    settings = _sampling_settings(arguments)
    prompt = _read_prompt(arguments)
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

    # Prints the continuation without its prompt when a program asks, and both for a reader.
    output = io.StringIO() if arguments.json else sys.stdout
    streamer = TextStreamer(
        tokenizer,
        skip_prompt=arguments.json,
        skip_special_tokens=True,
        stream=output,
        end="" if arguments.json else "\n",
    )
    settings |= {"max_new_tokens": arguments.max_new_tokens, "repetition_penalty": arguments.repetition_penalty}
    result = _generate(model, tokenizer(prompt, return_tensors="pt"), streamer, settings)
    if isinstance(output, io.StringIO):
        model_name = "embedded" if arguments.model is None else str(arguments.model)
        _print_json(prompt, output.getvalue(), result, model_name)
    print(_summary(result, settings.get("seed")), file=sys.stderr)


def _sampling_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in _SAMPLING if getattr(arguments, name) is not None}
    if arguments.greedy:
        if given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise UsageError(f"--greedy takes the likeliest token, so {option} has no meaning; leave out one of them.")
        return {"do_sample": False}
    defaults = {"temperature": _DEFAULT_TEMPERATURE, "top_k": 0, "top_p": _DEFAULT_TOP_P}
    # A seed of our own, so that it can be told.
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    return {"do_sample": True, "seed": seed, **defaults, **given}


def _read_prompt(arguments: argparse.Namespace) -> str:
    if (arguments.prompt is None) == (arguments.file is None):
        both = arguments.prompt is not None
        raise UsageError(
            "PROMPT and --file were both given; leave out one of them."
            if both
            else "There is no prompt; give a PROMPT, or --file FILE (- for stdin)."
        )
    if arguments.prompt is not None:
        prompt: str = arguments.prompt
    else:
        data = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
        try:
            # An editor ends the last line of a file; that is rarely meant as part of the prompt.
            prompt = data.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{arguments.file} is not UTF-8 text: byte {error.start} is wrong.") from None
    if not prompt:
        raise UsageError("The prompt is empty; give at least a character.")
    return prompt


def _generate(model: Any, inputs: Any, streamer: TextStreamer, settings: dict[str, Any]) -> Result:
    prompt_tokens = inputs["input_ids"].shape[1]
    start = time.perf_counter()
    sequences = model.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], streamer=streamer, **settings
    )
    seconds = time.perf_counter() - start
    return Result(prompt_tokens, sequences[0, prompt_tokens:].tolist(), seconds)


def _print_json(prompt: str, text: str, result: Result, model: str) -> None:
    report = {
        "prompt": prompt,
        "text": text,
        "tokens": result.tokens,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": len(result.tokens),
        "seconds": round(result.seconds, 6),
        "tokens_per_second": round(result.tokens_per_second, 3),
        "model": model,
    }
    print(json.dumps(report))


def _summary(result: Result, seed: int | None) -> str:
    summary = f"{len(result.tokens)} tokens in {result.seconds:.2f} s, {result.tokens_per_second:.1f} tokens/s"
    return summary if seed is None else f"{summary}, --seed {seed}"
