"""The command as a process of its own: pipes, signals and exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from generation_cases import write_checkpoint

PROMPT = "def first(items):"
COMMAND = [sys.executable, "-m", "persimmon_ext"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_as_a_process(checkpoint: Path) -> None:
    command = [*COMMAND, "generate", "--file", "-", "--model", str(checkpoint), "--greedy", "--json"]
    done = subprocess.run(command, input=PROMPT, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == PROMPT


def test_with_the_embedded_model_as_a_process() -> None:
    command = [*COMMAND, "generate", PROMPT, "--max-new-tokens", "8"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPT)
    assert "Using the small embedded model" in done.stderr


def test_ctrl_c_and_a_reader_that_leaves_as_processes(checkpoint: Path) -> None:
    command = [*COMMAND, "generate", PROMPT, "--model", str(checkpoint), "--max-new-tokens", "1000000"]
    pipes: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": ENVIRONMENT,
        # A shell starts background jobs with SIGINT ignored, which the command would inherit from the tests.
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    with (
        subprocess.Popen(command, **pipes, start_new_session=True) as interrupted,
        subprocess.Popen(command, **pipes, start_new_session=True) as unread,
    ):
        try:
            assert interrupted.stdout.read(len(PROMPT)) == PROMPT.encode(), "the prompt comes first"
            interrupted.send_signal(signal.SIGINT)
            _, err = interrupted.communicate(timeout=30)
            assert interrupted.returncode == 130
            assert b"Traceback" not in err
            unread.stdout.read(len(PROMPT))
            unread.stdout.close()
            deadline = time.monotonic() + 30
            while unread.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert unread.returncode == 1
            assert b"Traceback" not in unread.stderr.read()
        finally:
            interrupted.kill()
            unread.kill()
