"""The command ``persimmon-ext``: one file a subcommand, each with ``add_arguments(parser)`` and ``run(arguments)``."""

from persimmon_ext.cli.entry import main

__all__ = ["main"]
