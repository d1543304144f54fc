"""Parses the command line, runs a subcommand, and turns what goes wrong into a sentence and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import persimmon_ext
from persimmon_ext.cli import chat, convert, generate, info, inspect, serve
from persimmon_ext.cli.errors import UsageError

PROGRAM = "persimmon-ext"
SUBCOMMANDS = {
    "chat": (chat, "talk with a model"),
    "generate": (generate, "continue a prompt"),
    "convert": (convert, "turn the authors' release into a Hugging Face folder"),
    "inspect": (inspect, "look into a checkpoint without loading it"),
    "info": (info, "say what this installation has and uses"),
    "serve": (serve, "serve a model over HTTP"),
}

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments`, those of the process by default, and returns its exit status.

    0: done; 1: it failed, and stderr says why in a sentence; 2: wrong arguments; 130: interrupted by Ctrl-C.
    """
    parser = build_parser()
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as exit_request:  # after --help, or after a message about the arguments
        return exit_request.code if isinstance(exit_request.code, int) else MISUSED
    try:
        with _plain_warnings():
            parsed.run(parsed)
            print(end="", flush=True)  # a full disk or a closed pipe is noticed here at the latest
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left. Python would flush stdout once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as error:
        _say(f"error: {error}")
        return MISUSED
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
        _say(f"error: {_sentence(error)}")
        return FAILED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command and its subcommands."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Runs models of the Persimmon architecture.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {persimmon_ext.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, summary) in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def _say(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    # torch appends a C++ stack trace to its messages.
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _plain_warnings() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        finally:
            for warning in caught:
                _say(f"warning: {warning.message}")
