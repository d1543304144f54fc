"""A conversion that is interrupted or killed: nothing half-written appears, and the next run goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from adept_releases import convert, reference_model, tarred, write_release
from checkpoint_helpers import contents, unmarked
from safetensors.torch import load_file, save_file

import persimmon_ext
from persimmon_ext.checkpoints import converting

TESTS = Path(__file__).parent
STAGING = ".saving-converted"
SHARD_SIZE = "20KB"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "8b_base_model_release", reference_model())


def test_goes_on_with_the_next_shard(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "converted"
    write, written = converting.write_safetensors, []

    def interrupted(path: Path, *arguments: Any) -> None:
        if len(written) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, *arguments)
        written.append(path.name)

    monkeypatch.setattr(converting, "write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(release, folder, max_shard_size=SHARD_SIZE)
    assert [path.name for path in folder.iterdir()] == [".saving-converted"]  # nothing that a reader would find
    done = list(written)
    written.clear()
    written.append("")  # so that the second run isn't interrupted
    monkeypatch.setattr(
        converting, "write_safetensors", lambda path, *rest: (write(path, *rest), written.append(path.name))
    )
    convert(release, folder, max_shard_size=SHARD_SIZE)
    assert not set(done) & set(written)
    convert(release, tmp_path / "fresh", max_shard_size=SHARD_SIZE)
    assert contents(folder) == contents(tmp_path / "fresh")


def test_begins_again_when_the_release_has_changed(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "converted"
    with monkeypatch.context() as patch:
        patch.setattr(converting, "publish", full_disk)
        with pytest.raises(OSError, match="No space left"):
            convert(release, folder)
    other = reference_model(torch.float16)
    write_release(release, other)
    convert(release, folder)
    assert persimmon_ext.PersimmonForCausalLM.from_pretrained(folder).dtype == torch.float16


def test_a_failure_leaves_what_was_there(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = convert(release, tmp_path / "converted")
    before = contents(folder)
    monkeypatch.setattr(converting, "write_safetensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert(release, folder, dtype="float32")
    assert contents(folder) == before


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def interrupted_before_the_end(release: Path, folder: Path) -> list[Path]:
    """The finished shards of a conversion that was interrupted when all were written."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converting, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(release, folder, max_shard_size=SHARD_SIZE)
    return sorted((folder / STAGING).glob("model-*.safetensors"))


@pytest.mark.parametrize("kind", ["truncated", "empty", "damaged", "another shard", "without checksums", "nested plan"])
def test_finished_shards_are_checked(release: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "converted"
    first, second, *_ = interrupted_before_the_end(release, folder)
    content = bytearray(second.read_bytes())
    if kind == "truncated":
        second.write_bytes(content[:-1])
    elif kind == "empty":
        second.write_bytes(b"")
    elif kind == "damaged":
        content[-5] ^= 1
        second.write_bytes(content)
    elif kind == "another shard":
        second.write_bytes(first.read_bytes())
    elif kind == "without checksums":
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(second).items()}, second)
    else:
        (folder / STAGING / "plan.json").write_text("[" * 100_000)
    convert(release, folder, max_shard_size=SHARD_SIZE)
    convert(release, tmp_path / "fresh", max_shard_size=SHARD_SIZE)
    assert contents(folder) == contents(tmp_path / "fresh")


# The calls of os.replace: of each shard, of config.json and the tokenizer's files, of the journal, of each file's name.
@pytest.mark.parametrize("calls", [1, 3, 6, 9, 13])
@pytest.mark.parametrize("packed", [False, True])
def test_killed(release: Path, tmp_path: Path, calls: int, packed: bool) -> None:
    source, folder = tarred(release) if packed else release, tmp_path / "converted"
    script = f"""
        import os, signal
        from persimmon_ext.checkpoints import convert_adept

        left, original = [{calls}], os.replace
        def dying(*arguments):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return original(*arguments)

        os.replace = dying
        convert_adept({str(source)!r}, {str(folder)!r}, max_shard_size={SHARD_SIZE!r}, progress=False)
    """
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    assert list((folder / STAGING).iterdir())
    convert(source, folder, max_shard_size=SHARD_SIZE)
    convert(source, tmp_path / "fresh", max_shard_size=SHARD_SIZE)
    assert unmarked(contents(folder)) == contents(tmp_path / "fresh")
    assert not (folder / STAGING).exists()
