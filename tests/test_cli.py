"""The command: text, JSON, exit statuses, and a sentence for every mistake; all in this process."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_cases import write_checkpoint

import persimmon_ext
from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer, cli

PROMPT = "def first(items):"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def generate(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `generate` on the random model in this process: (status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(["generate", "--model", str(checkpoint), "--max-new-tokens", "4", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_prints_the_prompt_and_what_follows(generate: Any) -> None:
    status, out, err = generate(PROMPT, "--seed", "3")
    assert status == 0
    assert out.startswith(PROMPT)
    assert len(out) > len(PROMPT) + 1
    assert out.endswith("\n")
    assert "4 tokens in " in err
    assert "tokens/s, --seed 3" in err
    assert generate(PROMPT, "--seed", "3")[1] == out
    assert generate(PROMPT, "--seed", "4")[1] != out


def test_the_seed_it_tells_reproduces_the_text(generate: Any) -> None:
    _, out, err = generate(PROMPT)
    assert generate(PROMPT, "--seed", err.split("--seed ")[1].strip())[1] == out


def test_stop_ends_after_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", PROMPT, "--greedy", "--json", "--max-new-tokens", "24"]

    def run(*more: str) -> dict[str, Any]:
        assert cli.main([*command, *more]) == 0
        return json.loads(capsys.readouterr().out)

    whole = run()
    stop = whole["text"][10:12]
    cut = run("--stop", stop, "--stop", "never said")
    assert stop in cut["text"]
    assert cut["new_tokens"] < 24
    assert whole["tokens"][: cut["new_tokens"]] == cut["tokens"]


@pytest.mark.parametrize("options", [("--prompt-lookup", "5"), ("--cache", "dynamic"), ("--cache", "int8")])
def test_options_of_speed_and_memory(generate: Any, options: tuple[str, str]) -> None:
    command = (PROMPT, "--seed", "3", "--json")
    result = json.loads(generate(*command, *options)[1])
    if "int8" in options:
        assert result["new_tokens"] == 4
    else:
        assert result["tokens"] == json.loads(generate(*command)[1])["tokens"]


def test_json_is_one_object(generate: Any, checkpoint: Path) -> None:
    status, out, _ = generate(PROMPT, "--seed", "3", "--json")
    report = json.loads(out)
    assert status == 0
    assert list(report) == [
        *["prompt", "text", "tokens", "prompt_tokens", "new_tokens", "seconds", "tokens_per_second", "model"],
    ]
    assert report["prompt"] == PROMPT
    assert report["new_tokens"] == len(report["tokens"]) == 4
    assert report["model"] == str(checkpoint)
    assert report["tokens_per_second"] == pytest.approx(4 / report["seconds"], rel=0.01)
    assert generate(PROMPT, "--seed", "3")[1] == PROMPT + report["text"] + "\n"
    ids = PersimmonTokenizer.from_pretrained(checkpoint)(PROMPT)["input_ids"]
    assert report["prompt_tokens"] == len(ids)


def test_the_acceptance_rate_is_told(generate: Any) -> None:
    _, out, err = generate(PROMPT, "--greedy", "--json", "--prompt-lookup", "5", "--max-new-tokens", "30")
    told = json.loads(out)["speculation"]
    assert list(told) == ["drafted", "accepted", "steps", "acceptance_rate"]
    assert told["acceptance_rate"] == pytest.approx(told["accepted"] / max(told["drafted"], 1), abs=1e-4)
    assert told["steps"] + told["accepted"] >= 30
    assert f"{told['accepted']} of {told['drafted']} drafted tokens accepted" in err
    assert "accepted" not in generate(PROMPT, "--greedy")[2]


def test_greedy_is_the_models_greedy(generate: Any, checkpoint: Path) -> None:
    tokens = json.loads(generate(PROMPT, "--greedy", "--json")[1])["tokens"]
    model = PersimmonForCausalLM.from_pretrained(checkpoint)
    ids = PersimmonTokenizer.from_pretrained(checkpoint)(PROMPT, return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=4)[0, ids.shape[1] :].tolist() == tokens


def test_every_option_reaches_the_model(generate: Any) -> None:
    first = json.loads(generate(PROMPT, "--greedy", "--json")[1])["tokens"]
    for options in (["--top-k", "1"], ["--top-p", "1e-6"], ["--min-p", "1"], ["--temperature", "1e-4"]):
        assert json.loads(generate(PROMPT, "--json", *options)[1])["tokens"] == first, options
    threads = torch.get_num_threads()
    try:
        assert generate(PROMPT, "--threads", "1", "--dtype", "bf16", "--device", "cpu")[0] == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    repeats = json.loads(generate(PROMPT, "--greedy", "--repetition-penalty", "1e-9", "--json")[1])["tokens"]
    assert repeats != first


def test_reads_a_file_and_stdin(generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(PROMPT, "--greedy")[1]
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    assert generate("--file", str(tmp_path / "prompt.txt"), "--greedy")[1] == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode())))
    assert generate("--file", "-", "--greedy")[1] == expected


def test_text_beyond_the_vocabulary(generate: Any) -> None:
    text = "naïve — 日本語 🦀 \t\n end"
    assert generate(text, "--greedy")[1].startswith(text)


def test_a_tokenizer_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path)
    PersimmonTokenizer.from_pretrained(folder, added_tokens={"<pad>": 4096}).save_pretrained(folder)
    assert cli.main(["generate", PROMPT, "--model", str(folder)]) == 1
    assert "has 4097 tokens, but the model's vocabulary has only 4096" in capsys.readouterr().err


def test_a_long_text_is_a_warning_in_a_sentence(generate: Any) -> None:
    status, _, err = generate(PROMPT, "--max-new-tokens", "70")
    assert status == 0
    assert "persimmon-ext: warning: The sequence has" in err
    assert ".py" not in err


def test_without_a_model_it_says_which_it_uses(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persimmon_ext.cli.models.embedded_checkpoint", lambda: checkpoint)
    assert cli.main(["generate", PROMPT, "--max-new-tokens", "2", "--json"]) == 0
    captured = capsys.readouterr()
    assert "Using the small embedded model" in captured.err
    assert json.loads(captured.out)["model"] == "embedded"


MISUSES: list[tuple[list[str], str]] = [
    ([], "There is no prompt; give a PROMPT, or --file FILE (- for stdin)."),
    ([""], "The prompt is empty"),
    (["x", "--file", "y"], "PROMPT and --file were both given"),
    (["x", "--max-new-tokens", "0"], "0 is below 1"),
    (["x", "--max-new-tokens", "many"], "'many' is not an integer"),
    (["x", "--temperature", "0"], "0 must be above 0"),
    (["x", "--temperature", "nan"], "nan must be above 0"),
    (["x", "--top-p", "1.5"], "1.5 must be above 0 and at most 1"),
    (["x", "--top-p", "0"], "0 must be above 0 and at most 1"),
    (["x", "--top-k", "-1"], "-1 is below 0"),
    (["x", "--min-p", "2"], "2 must be at least 0 and at most 1"),
    (["x", "--repetition-penalty", "hot"], "'hot' is not a number"),
    (["x", "--seed", "1.5"], "'1.5' is not an integer"),
    (["x", "--threads", "0"], "0 is below 1"),
    (["x", "--dtype", "int8"], "'int8' is none of float32, bfloat16"),
    (["x", "--device", "abacus"], "'abacus' is not a device such as cpu, cuda or cuda:1"),
    (["x", "--greedy", "--top-k", "5"], "--greedy takes the likeliest token, so --top-k has no meaning"),
    (["x", "--beams", "5"], "unrecognized arguments: --beams 5"),
]


@pytest.mark.parametrize(("arguments", "words"), MISUSES, ids=[" ".join(case[0]) for case in MISUSES])
def test_misuse_is_status_2_and_a_sentence(generate: Any, arguments: list[str], words: str) -> None:
    status, out, err = generate(*arguments)
    assert status == 2
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_failure_is_status_1_and_a_sentence(
    generate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"abc\xff")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "config.json").write_text("{")
    cases = [
        (["x", "--model", str(tmp_path / "none")], "none"),
        (["x", "--model", str(broken)], "config.json"),
        (["--file", str(tmp_path / "none.txt")], "none.txt: No such file or directory"),
        (["--file", str(tmp_path)], "Is a directory"),
        (["--file", str(tmp_path / "bytes.txt")], "bytes.txt is not UTF-8 text: byte 3 is wrong"),
        (["x", "--device", "cuda:77"], "GPU"),
    ]
    if torch.cuda.is_available():
        cases.pop()
    for arguments, words in cases:
        status, out, err = generate(*arguments)
        assert (status, out) == (1, ""), (arguments, err)
        message = err.strip().splitlines()[-1]
        assert message.startswith("persimmon-ext: error: "), err
        assert words in message
        assert "Traceback" not in err


def test_the_embedded_checkpoint_may_be_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("persimmon_ext.assets.files", lambda _package: tmp_path)
    assert cli.main(["generate", "x"]) == 1
    assert "The embedded checkpoint is missing" in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "generate" in out
    assert "info" in out
    assert cli.main(["generate", "--help"]) == 0
    assert cli.main(["--version"]) == 0
    assert persimmon_ext.__version__ in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["translate"]) == 2


def test_ctrl_c_is_status_130(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PersimmonForCausalLM, "generate", interrupted)
    status, _, err = generate("x")
    assert status == 130
    assert "Traceback" not in err
