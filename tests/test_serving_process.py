"""``persimmon-ext serve`` as a process: start, signals, and what it can't do."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks import serve as benchmark
from persimmon_ext.cli import main


def test_serves_until_sigterm_and_finishes_what_runs():
    command = [sys.executable, "-m", "persimmon_ext", "serve", "--port", "0", "--threads", "1", "--grace", "20"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr.readline() == "Using the small embedded model; name another with --model.\n"
            line = process.stderr.readline()
            found = re.fullmatch(
                r"Serving persimmon-embedded at (http://127\.0\.0\.1:\d+) \(texts of at most 512 tokens, 32 at a time "
                r"with \d+ tokens of cache\)\. Ctrl-C ends it\.\n",
                line,
            )
            assert found, line + process.stderr.read()
            url = found[1]
            body = {"prompt": "import", "max_tokens": 100, "stream": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as reply:
                events = reply.iter_lines()
                next(events)
                process.send_signal(signal.SIGTERM)
                assert [event for event in events if event][-1] == "data: [DONE]"
            process.wait(20)
            log = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert re.search(r"INFO 127\.0\.0\.1 POST /v1/completions 200 \d+\.\d+ s", log)


def test_the_benchmark_counts_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "result.json"
    load = ["--clients", "3", "--seconds", "0.2", "--tokens", "2", "--prompt", "20", "--json", str(file)]
    benchmark.run([*load, "--", "--threads", "1"])
    (row,) = json.loads(file.read_text())["results"]
    assert (row["clients"], row["texts"] >= 3) == (3, True)
    assert 0 < row["first_token_s"]["median"] <= row["text_s"]["median"] <= row["text_s"]["p95"]
    assert f"{row['tokens_per_s']:.0f}" in capsys.readouterr().out


def test_a_port_that_is_taken_is_a_sentence(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    assert "Address already in use" in capsys.readouterr().err


def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "persimmon_ext.serving.server", raising=False)
    assert main(["serve", "--port", "0"]) == 1
    assert "persimmon-ext serve needs uvicorn: pip install 'persimmon_ext[serve]'" in capsys.readouterr().err
