"""The JSON files of the other programs as Markdown tables and, with --plots, as PNG pictures (needs matplotlib)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import convert, kernels, loading, table
from benchmarks.decode import PLANNED

try:
    from matplotlib import figure as drawing

    Figure: Any = drawing.Figure
except ModuleNotFoundError:
    Figure = None

Result = dict[str, Any]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="+", help="written by --json of kernels, decode, prefill, loading or convert")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there instead of printing them")
    parser.add_argument("--plots", metavar="FOLDER", help="write PNG pictures there")
    return parser.parse_args(arguments)


def load(path: str) -> Result:
    """One result. Exits with a sentence for a file that none of the programs wrote."""
    try:
        result: Result = json.loads(Path(path).read_text(encoding="utf-8"))
        known = result["program"] in ("kernels", "decode", "prefill", "loading", "convert")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise SystemExit(f"{path} can't be read as a benchmark's result: {problem!r}.") from problem
    if not known:
        raise SystemExit(f"{path} is of the program {result['program']!r}, which has no report.")
    return result


def model_row(result: Result) -> dict[str, str]:
    """One run of a whole model as a row."""
    chosen, sides = result["options"], {row["side"]: row for row in result["results"]}
    ours, theirs, planned = sides["ours"], sides.get("transformers"), sides.get(PLANNED)
    decode = result["program"] == "decode"
    length = chosen["context"] if decode else chosen["tokens"]
    row = {
        "layers": str(chosen["layers"]),
        "dtype": chosen["quantization"] or chosen["dtype"],
        "batch": str(chosen["batch"]),
        "context" if decode else "prompt": str(length),
        "zeros": f"{result['zeros']:.0%}",
        "threads": str(result["machine"]["threads"]),
        "ours, tokens/s": f"{ours['tokens_per_s']:.2f}",
        "transformers, tokens/s": f"{theirs['tokens_per_s']:.2f}" if theirs else "",
        "ratio": f"{result['ratio']:.2f}" if theirs else "",
    }
    if decode:
        share = ours["share_of_bandwidth"]
        row |= {
            "GB/s": f"{ours['gb_per_s']:.1f}",
            "of bandwidth": f"{share:.0%}",
            "ratio at 100%": f"{result['ratio'] / share:.2f}" if theirs else "",  # the most that memory allows
            "in generate(), tokens/s": f"{planned['tokens_per_s']:.2f}" if planned else "",
        }
    else:
        row |= {"GFLOP/s": f"{ours['gflops']:.0f}", "of matmul rate": f"{ours['share_of_matmul']:.0%}"}
    return row


def markdown(results: Sequence[Result]) -> str:
    """All results: a table for each run of the kernels, and one for all runs of each other program."""
    parts = []
    for result in results:
        if result["program"] == "kernels":
            rows = [kernels.as_row(row) for row in result["results"]]
            parts.append(f"## Kernels\n\n{_conditions([result])}\n\n{table.markdown(rows)}")
            parts += kernels.notes(result["results"])
    for program in ("decode", "prefill"):
        runs = [result for result in results if result["program"] == program]
        if runs:
            text = table.markdown([model_row(run) for run in runs])
            parts.append(f"## {program.capitalize()}\n\n{_conditions(runs)}\n\n{text}")
    for program, as_rows in (("loading", loading.as_rows), ("convert", convert.as_rows)):
        if runs := [result for result in results if result["program"] == program]:
            text = table.markdown([row for run in runs for row in as_rows(run)])
            parts.append(f"## {program.capitalize()}\n\n{_conditions(runs)}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def _conditions(runs: Sequence[Result]) -> str:
    machines = list(dict.fromkeys(table.machine_line(run) for run in runs))
    return "\n".join(["```", *machines, *(table.run_line(run) for run in runs), "```"])


def plot_kernels(result: Result, path: Path) -> None:
    """Share of the ceiling of every case, as bars; eager beside ours."""
    rows = result["results"]
    labels = [f"{row['op']}  {row['shape']}" for row in rows]
    ours = [100 * row["share_of_ceiling"] for row in rows]
    eager = [share / row["times_eager"] for share, row in zip(ours, rows, strict=True)]
    figure = Figure(figsize=(10, 1.5 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.barh([p - 0.2 for p in places], ours, height=0.4, label="persimmon_ext")
    axes.barh([p + 0.2 for p in places], eager, height=0.4, label="eager PyTorch")
    axes.set_yticks(list(places), labels, fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set_xlabel("% of the measured ceiling")
    axes.set_title(f"{result['machine']['cpu']}, {result['machine']['threads']} threads, {result['date']}", fontsize=9)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def plot_models(runs: Sequence[Result], path: Path) -> None:
    """Tokens per second of both sides, a pair of bars for each run."""
    figure = Figure(figsize=(3 + 1.1 * len(runs), 4.5), layout="constrained")
    axes = figure.add_subplot()
    for shift, side in ((-0.2, "ours"), (0.2, "transformers")):
        rates = [
            next((row["tokens_per_s"] for row in run["results"] if row["side"] == side), float("nan")) for run in runs
        ]
        bars = axes.bar([i + shift for i in range(len(runs))], rates, width=0.4, label=side)
        axes.bar_label(bars, fmt="%.3g", fontsize=7)
    names = list(model_row(runs[0]))[1:6]
    labels = ["\n".join(f"{name} {model_row(run)[name]}" for name in names) for run in runs]
    axes.set_xticks(range(len(runs)), labels, fontsize=7)
    axes.set_ylabel("tokens/s")
    machine = runs[0]["machine"]
    axes.set_title(f"{runs[0]['program']}: {machine['cpu']}, {runs[0]['date']}", fontsize=9)
    axes.margins(y=0.2)  # room for the legend
    axes.legend(ncols=2, loc="upper center")
    figure.savefig(path, dpi=110)


def plot(results: Sequence[Result], folder: str) -> list[Path]:
    """Writes the pictures; returns their paths. Exits with a sentence where matplotlib is missing."""
    if Figure is None:
        raise SystemExit("--plots needs matplotlib, which is not installed: pip install matplotlib.")
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for i, result in enumerate(result for result in results if result["program"] == "kernels"):
        written.append(place / f"kernels{f'-{i + 1}' if i else ''}.png")
        plot_kernels(result, written[-1])
    for program in ("decode", "prefill"):
        runs = [result for result in results if result["program"] == program]
        if runs:
            written.append(place / f"{program}.png")
            plot_models(runs, written[-1])
    return written


def run(arguments: list[str] | None = None) -> None:
    """The program; `arguments` as on the command line."""
    chosen = parse(arguments)
    results = [load(file) for file in chosen.files]
    text = markdown(results)
    if chosen.markdown:
        Path(chosen.markdown).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    if chosen.plots:
        for path in plot(results, chosen.plots):
            print(path)


if __name__ == "__main__":
    run()
