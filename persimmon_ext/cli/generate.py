"""Continues a prompt and prints the text as it comes; tokens per second follow on stderr."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persimmon_ext.cli import models
from persimmon_ext.cli.errors import UsageError
from persimmon_ext.outputs import Speculation
from persimmon_ext.text_stream import TextStreamer


@dataclass
class Result:
    """What came out; `seconds` covers the prompt and the new tokens, not loading."""

    prompt_tokens: int
    tokens: list[int]
    seconds: float
    speculation: Speculation | None = None

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second."""
        return len(self.tokens) / self.seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to continue")
    parser.add_argument("--file", metavar="FILE", help="read the prompt from FILE, or from stdin if FILE is -")
    models.add_model_arguments(parser)
    models.add_generation_arguments(parser, max_new_tokens=128)
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end after TEXT; may be given several times")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead, with the figures")


def run(arguments: argparse.Namespace) -> None:
    """Generates and prints. Raises UsageError, or what reading, loading and generating raise."""
    settings = models.generation_settings(arguments)
    prompt = _read_prompt(arguments)
    model, tokenizer = models.load(arguments)

    # Prints the continuation without its prompt when a program asks, and both for a reader.
    output = io.StringIO() if arguments.json else sys.stdout
    streamer = TextStreamer(
        tokenizer,
        skip_prompt=arguments.json,
        skip_special_tokens=True,
        stream=output,
        end="" if arguments.json else "\n",
    )
    settings |= {"stop_strings": arguments.stop, "tokenizer": tokenizer}
    result = _generate(model, tokenizer(prompt, return_tensors="pt"), streamer, settings)
    if isinstance(output, io.StringIO):
        model_name = "embedded" if arguments.model is None else str(arguments.model)
        _print_json(prompt, output.getvalue(), result, model_name)
    print(_summary(result, settings.get("seed")), file=sys.stderr)


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
    made = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        streamer=streamer,
        return_dict_in_generate=True,
        **settings,
    )
    seconds = time.perf_counter() - start
    return Result(
        prompt_tokens, made.sequences[0, prompt_tokens:].tolist(), seconds, getattr(made, "speculation", None)
    )


def _print_json(prompt: str, text: str, result: Result, model: str) -> None:
    report: dict[str, Any] = {
        "prompt": prompt,
        "text": text,
        "tokens": result.tokens,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": len(result.tokens),
        "seconds": round(result.seconds, 6),
        "tokens_per_second": round(result.tokens_per_second, 3),
        "model": model,
    }
    if (drafting := result.speculation) is not None:
        counts = {"drafted": drafting.drafted, "accepted": drafting.accepted, "steps": drafting.steps}
        report["speculation"] = {**counts, "acceptance_rate": round(drafting.acceptance_rate, 4)}
    print(json.dumps(report))


def _summary(result: Result, seed: int | None) -> str:
    summary = f"{len(result.tokens)} tokens in {result.seconds:.2f} s, {result.tokens_per_second:.1f} tokens/s"
    if result.speculation is not None:
        summary += f", {models.describe(result.speculation)}"
    return summary if seed is None else f"{summary}, --seed {seed}"
