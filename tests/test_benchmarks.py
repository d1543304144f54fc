"""The benchmark programs at tiny sizes: they run, write what they promise, and refuse to time a wrong result."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graph_helpers import Replays

from benchmarks import checks, decode, generate, kernels, models, options, prefill, report, scratch, serve, suite
from benchmarks.timing import Sample, measure
from benchmarks.weights import Filler
from persimmon_ext import heads, ops
from persimmon_ext.decode_graphs import DecodeGraphs
from persimmon_ext.decode_plan import DecodePlan
from persimmon_ext.ops.native import KERNELS

SIZES = {"hidden": 128, "ffn": 256, "heads": 2, "vocab": 211, "repeats": 2, "bandwidth-buffer": 1}
SHAPE = [f"--{name}={value}" for name, value in SIZES.items()]
MODEL = [*SHAPE, "--layers", "2"]


def results_of(program: Any, arguments: list[str], folder: Path) -> dict[str, Any]:
    file = folder / "result.json"
    with torch.no_grad():
        program.run([*arguments, "--json", str(file)])
    return json.loads(file.read_text())


@pytest.mark.parametrize("op", kernels.CASES)
def test_kernels_measures_every_op(op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--rows", "1", "3", "--tokens", "5", "--context", "7"]
    result = results_of(kernels, [*SHAPE, *sizes, "--warm", "--only", op], tmp_path)
    assert result["results"], "no case"
    for row in result["results"]:
        assert row["op"] == op
        assert row["times_eager"] > 0
        assert row["share_of_ceiling"] > 0
    assert op in capsys.readouterr().out


def test_kernels_covers_every_op() -> None:
    assert set(kernels.CASES) == {name for name, device in KERNELS if device == "CPU"}


def test_kernels_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 1.0, *[9.0] * 9])  # the second case comes too late
    monkeypatch.setitem(kernels.CASES, "relu2", lambda shapes: pytest.fail("a case is built that won't be run"))
    monkeypatch.setattr(kernels, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    arguments = ["--tokens", "5", "6", "--warm", "--budget", "5", "--only", "layer_norm", "relu2"]
    result = results_of(kernels, [*SHAPE, *arguments], tmp_path)
    assert [row["op"] for row in result["results"]] == ["layer_norm"]
    assert result["left_out"] == ["layer_norm", "relu2"]
    assert "a part is missing of layer_norm, relu2." in capsys.readouterr().out
    clock = iter([0.0, *[9.0] * 9])
    with pytest.raises(SystemExit, match=r"--budget 5\.0 leaves no time"):
        kernels.run([*SHAPE, *arguments])


def test_kernels_refuses_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "layer_norm", lambda x, weight, bias, eps: x)
    with pytest.raises(SystemExit, match=r"layer_norm, result 0: error .* is allowed") as stopped:
        options.main(lambda: kernels.run([*SHAPE, "--tokens", "5", "--only", "layer_norm"]))
    assert stopped.value.code != 0


def test_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--new-tokens", "9", "--context", "5", "--soak-tokens", "40", "--dtype", "float32"]
    result = results_of(generate, [*MODEL, *short], tmp_path)
    assert [part["part"] for part in result["results"]] == list(generate.PARTS)
    for part in result["results"]:
        assert part["ratio"] > 0
        assert all(side["tokens_per_s"] > 0 for side in part["sides"].values())
    looked_up = next(part for part in result["results"] if part["part"] == "speculation")
    assert looked_up["tokens_per_step"] > 1
    assert "drafts accepted" in capsys.readouterr().out


def test_generate_refuses_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate.bare_loop, "decode", lambda model, prompt, new, calls: prompt)
    with pytest.raises(SystemExit, match="overhead: registered operators alone gives other tokens than generate"):
        options.main(lambda: generate.run([*MODEL, "--new-tokens", "3", "--parts", "overhead"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decode(dtype: str, tmp_path: Path) -> None:
    result = results_of(decode, [*MODEL, "--dtype", dtype, "--batch", "2", "--context", "5", "--profile"], tmp_path)
    assert [row["side"] for row in result["results"]] == ["ours", "transformers", decode.PLANNED]
    assert result["ratio"] > 0
    assert not result["captured"]
    for profile in (result["profile"], result["generate_profile"]):
        assert profile["linear"] > 0
        assert sum(profile.values()) == pytest.approx(1)
    assert result["logits_difference"] < decode.LIMITS[dtype]
    logits = 2 * 211 * torch.finfo(getattr(torch, dtype)).bits // 8
    assert logits <= result["scratch_bytes"] < 1e6


def test_decode_of_one_side(tmp_path: Path) -> None:
    result = results_of(decode, [*MODEL, "--only-ours"], tmp_path)
    assert [row["side"] for row in result["results"]] == ["ours", decode.PLANNED]
    assert "ratio" not in result


def test_decode_times_captured_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on CUDA: the steps of generate() are replays of a graph."""
    replays = Replays()
    monkeypatch.setattr(DecodePlan, "can_be_captured", lambda model, *, int8_cache: True)
    monkeypatch.setattr(heads, "DecodeGraphs", lambda: DecodeGraphs(replays.capture))
    result = results_of(decode, [*MODEL, "--only-ours"], tmp_path)
    assert result["captured"]
    assert replays.captures == 1
    assert replays.replays == 3 + 2 + SIZES["repeats"], "checked, warm-up, timed"
    assert "replays of a CUDA graph" in capsys.readouterr().out


def test_decode_refuses_other_logits_of_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode.PlannedSide, "step", lambda self: torch.zeros(1, SIZES["vocab"]))
    with pytest.raises(SystemExit, match=r"logits of ours in generate\(\) at step 0: relative difference 1"):
        options.main(lambda: decode.run([*MODEL, "--only-ours"]))


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
def test_zeros_are_set(zeros: float, tmp_path: Path) -> None:
    result = results_of(decode, [*MODEL, "--zeros", str(zeros)], tmp_path)
    assert result["zeros"] == pytest.approx(zeros, abs=0.08)


@pytest.mark.skipif(not hasattr(models.persimmon_ext.PersimmonForCausalLM, "quantize"), reason="no quantised models")
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_decode_quantised(quantization: str, tmp_path: Path) -> None:
    result = results_of(decode, [*MODEL, "--quantization", quantization], tmp_path)
    assert 0 < result["logits_difference"] < decode.LIMITS[quantization]
    assert result["weight_bytes"] < result["results"][1]["bytes_read"]


def test_decode_refuses_other_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decode.LIMITS, "bfloat16", 0.0)
    with pytest.raises(SystemExit, match="logits of step 0: relative difference"):
        options.main(lambda: decode.run([*MODEL, "--limit", "1e-9"]))


def test_prefill(tmp_path: Path) -> None:
    result = results_of(prefill, [*MODEL, "--tokens", "20", "--profile"], tmp_path)
    assert result["ratio"] > 0
    assert result["results"][0]["gflops"] > 0


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = ((kernels, [*SHAPE, "--only", "relu2", "--tokens", "4"]), (decode, MODEL), (prefill, [*MODEL, "--tokens=9"]))
    files = []
    for i, (program, arguments) in enumerate(runs):
        results_of(program, arguments, tmp_path)
        files.append(str((tmp_path / "result.json").rename(tmp_path / f"{i}.json")))
    capsys.readouterr()
    report.run(files)
    text = capsys.readouterr().out
    assert "| relu2 | 4x256 | bfloat16 |" in text
    assert text.count("## ") == 3
    if report.Figure is None:
        with pytest.raises(SystemExit, match="needs matplotlib"):
            report.run([*files, "--plots", str(tmp_path / "plots")])
    else:
        report.run([*files, "--plots", str(tmp_path / "plots"), "--markdown", str(tmp_path / "report.md")])
        assert {path.name for path in (tmp_path / "plots").iterdir()} == {"kernels.png", "decode.png", "prefill.png"}
        assert (tmp_path / "report.md").read_text() == text


def test_report_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "Figure", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        report.plot([], str(tmp_path))


def test_report_of_another_file(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"program": "generate"}')
    with pytest.raises(SystemExit, match="'generate', which has no report"):
        report.load(str(file))
    file.write_text("nonsense")
    with pytest.raises(SystemExit, match="can't be read"):
        report.load(str(file))


def test_measure_alternates() -> None:
    calls: list[str] = []
    sides = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    flush = lambda: calls.append("-")  # noqa: E731
    samples = measure(sides, device=torch.device("cpu"), repeats=2, flush=flush, warmup=0)
    assert "".join(calls) == "-a-b-b-a"
    assert len(samples["a"].seconds) == 2
    assert len(samples["flush"].seconds) == 4


def test_quantiles() -> None:
    sample = Sample((1.0, 2.0, 3.0, 4.0))
    assert sample.fastest == 1.0
    assert sample.median == 2.5
    assert sample.quantile(1.0) == 4.0


def test_filler_is_seeded_and_normal() -> None:
    first = Filler(1).normal(300, 300, dtype=torch.float32, spread=0.5)
    assert torch.equal(first, Filler(1).normal(300, 300, dtype=torch.float32, spread=0.5))
    assert float(first.std()) == pytest.approx(0.5, rel=0.02)


def test_scratch_counts_what_is_held_at_once() -> None:
    def call() -> torch.Tensor:
        freed = torch.empty(1000, dtype=torch.float32)
        del freed
        return torch.empty(500, dtype=torch.float32) + torch.empty(500, dtype=torch.float32)

    assert scratch.peak_bytes(call) == 6000


def test_check_accurate_finds_nan() -> None:
    good = torch.ones(3, dtype=torch.bfloat16)
    checks.check_accurate("ones", good, good, good.float())
    with pytest.raises(checks.MismatchError, match="ones: error nan"):
        checks.check_accurate("ones", good * float("nan"), good, good.float())


def test_suite_runs_each_program_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def fail_on_kernels(command: list[str], check: bool) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=int("benchmarks.kernels" in command))

    monkeypatch.setattr(suite, "wait_until_idle", lambda seconds: True)
    monkeypatch.setattr(suite.subprocess, "run", fail_on_kernels)
    with pytest.raises(SystemExit, match=r"Failed: kernels\."):
        suite.run([str(tmp_path), "--only", "kernels", "decode-int8", "--options", "--layers", "2"])
    expected = ["--zeros", "0.5", "--quantization", "int8", "--profile", "--layers", "2"]
    assert commands[1][1:] == ["-m", "benchmarks.decode", *expected, "--json", str(tmp_path / "decode-int8.json")]


def test_suite_knows_only_options_that_exist() -> None:
    for program, *settings in suite.RUNS.values():
        programs = {"decode": decode, "prefill": prefill, "kernels": kernels, "generate": generate, "serve": serve}
        programs[program].parse(settings)
