"""Rows of results as aligned text, as Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, str]


def text(rows: Sequence[Row]) -> str:
    """Aligned columns; the header is the keys of the first row. The first column is left-aligned, numbers right."""
    if not rows:
        return "(no rows)"
    header = list(rows[0])
    lines = [header, *([row.get(key, "") for key in header] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    left = 2  # name and shape

    def laid_out(line: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join(laid_out(line) for line in lines)


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; the header is the keys of the first row."""
    if not rows:
        return "(no rows)"
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([row.get(key, "") for key in header] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def machine_line(result: Mapping[str, Any]) -> str:
    """What a result was measured on."""
    machine = result["machine"]
    device = "" if machine["device"] == "cpu" else f", {machine['device']}"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}{device}; torch {machine['torch']}, "
        f"transformers {machine['transformers']}; commit {machine['commit']}"
    )


def run_line(result: Mapping[str, Any]) -> str:
    """How and when a result was measured, and the ceilings measured with it."""
    machine, ceilings = result["machine"], result["ceilings"]
    rates = []
    if "read_bytes_per_s" in ceilings:
        rates.append(f"reads {ceilings['read_bytes_per_s'] / 1e9:.1f} GB/s")
    if "matmul_flops" in ceilings:
        rates.append(f"matmul {ceilings['matmul_flops'] / 1e9:.0f} GFLOP/s")
    return (
        f"{result['command']}\n  {result['date']}, {machine['threads']} threads, load {machine['load_average']:.2f} at "
        f"the start; measured: {', '.join(rates)}"
    )


def heading(result: Mapping[str, Any]) -> str:
    """The lines above a table."""
    return f"{machine_line(result)}\n{run_line(result)}"


def microseconds(times: Mapping[str, float]) -> str:
    """`median (p20–p80)` in microseconds."""
    low, middle, high = (times[key] * 1e6 for key in ("p20_s", "median_s", "p80_s"))
    digits = 1 if middle < 100 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def write_json(path: str | None, result: Mapping[str, Any]) -> None:
    """Writes `result` to `path`, or nothing where there is none."""
    if path is None:
        return
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
