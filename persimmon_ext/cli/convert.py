"""Converts the authors' release of Persimmon-8B to a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from persimmon_ext.checkpoints import convert_adept
from persimmon_ext.cli import values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("source", type=Path, metavar="RELEASE", help="the tar, or the folder that it unpacks to")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the Hugging Face folder shall be")
    parser.add_argument("--dtype", type=values.dtype, metavar="NAME", help="of the result; default: the release's")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="such as 500MB; default: 5GB")
    parser.add_argument(
        "--md5",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKSUM",
        help="check the tar first: against CHECKSUM, or else those of the two public tars",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> None:
    """Converts, and says where the result is. Raises what :func:`convert_adept` does."""
    folder = convert_adept(
        arguments.source,
        arguments.folder,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        md5=arguments.md5,
        progress=not arguments.quiet,
    )
    print(folder)
