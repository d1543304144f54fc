"""Saving over a checkpoint: full disks, killed processes and two savers at once leave one whole model."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import assert_same_tensors, contents, load, make_model, unmarked

from persimmon_ext.checkpoints import CheckpointError, loading, replacing, save_pretrained
from persimmon_ext.checkpoints.inspection import open_checkpoint
from persimmon_ext.checkpoints.weight_file import WeightFile
from persimmon_ext.heads import PersimmonForCausalLM

SIZES = ["5GB", 3000]
TESTS = Path(__file__).parent


def save_and_die(folder: Path, size: int | str, where: str, calls: int) -> None:
    """Saves make_model(seed=1) to `folder` in a process that is killed before call number `calls` of os.`where`."""
    script = f"""
        import os, signal
        from checkpoint_helpers import make_model
        from persimmon_ext.checkpoints import save_pretrained

        left, original = [{calls}], os.{where}
        def dying(*arguments, **options):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return original(*arguments, **options)

        model = make_model(seed=1)
        os.{where} = dying
        save_pretrained(model, {str(folder)!r}, max_shard_size={size!r})
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("save", [save_pretrained, PersimmonForCausalLM.save_pretrained])
def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path: Path, save: Callable[..., None], size: int | str) -> None:
    save(make_model(), tmp_path, max_shard_size=size)
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # The nearest thing to a full disk that a test may make: no file may grow beyond 2500 bytes.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))
        with pytest.raises(OSError, match="File too large") as caught:
            save(make_model(seed=1), tmp_path, max_shard_size=size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ".safetensors" in str(caught.value.filename)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)


def test_generation_config_is_replaced_with_the_rest(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "checkpoint", tmp_path / "elsewhere.json"
    make_model().save_pretrained(folder)
    before = contents(folder)
    other = make_model(seed=1)
    other.generation_config.bad_words_ids = [[{1}]]
    with pytest.raises(TypeError, match="not JSON serializable"):
        other.save_pretrained(folder)
    assert contents(folder) == before
    other.generation_config.bad_words_ids = [[1]]
    elsewhere.write_text("of somebody else")
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to(elsewhere)
    other.save_pretrained(folder)
    assert elsewhere.read_text() == "of somebody else"
    assert PersimmonForCausalLM.from_pretrained(folder).generation_config.bad_words_ids == [[1]]
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_the_way(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=rf"{name} is a folder, where a file of the checkpoint shall be"):
        save_pretrained(make_model(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).rename(tmp_path / "model-00001-of-00002.safetensors")
    save_pretrained(make_model(), tmp_path)
    assert_same_tensors(make_model(), load(tmp_path))
    assert (tmp_path / "model-00001-of-00002.safetensors" / "inside").is_dir()


def test_killed_while_writing(tmp_path: Path) -> None:
    save_pretrained(make_model(), tmp_path, max_shard_size=3000)
    before = contents(tmp_path)
    save_and_die(tmp_path, 3000, "fsync", calls=1)
    assert contents(tmp_path) == before
    assert list(tmp_path.glob(".saving-*"))
    assert_same_tensors(make_model(), load(tmp_path))
    save_pretrained(make_model(seed=2), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# The first two calls are config.json's own and the journal's.
@pytest.mark.parametrize(("size", "calls"), [("5GB", 2), ("5GB", 3), (3000, 2), (3000, 4), (3000, 6)])
def test_killed_while_files_take_their_names(tmp_path: Path, size: int | str, calls: int) -> None:
    save_pretrained(make_model(), tmp_path, max_shard_size=3000)
    save_and_die(tmp_path, size, "replace", calls)
    assert_same_tensors(make_model(seed=1), load(tmp_path))
    assert not list(tmp_path.glob(".saving-*"))
    fresh = tmp_path / "fresh"
    save_pretrained(make_model(seed=1), fresh, max_shard_size=size)
    assert unmarked(contents(tmp_path)) == unmarked(contents(fresh))


@pytest.mark.parametrize("inspected", [False, True])
@pytest.mark.parametrize("calls", [2, 3, 4])
def test_the_first_save_is_killed_while_files_take_their_names(tmp_path: Path, calls: int, inspected: bool) -> None:
    save_and_die(tmp_path, 3000, "replace", calls)
    if inspected:
        with open_checkpoint(tmp_path) as opened:
            assert set(opened.infos) == set(make_model().state_dict())
    assert_same_tensors(make_model(seed=1), load(tmp_path))


def test_the_next_save_finishes_the_interrupted_one(tmp_path: Path) -> None:
    save_pretrained(make_model(), tmp_path, max_shard_size=3000)
    save_and_die(tmp_path, 3000, "replace", 4)
    save_pretrained(make_model(seed=2), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same_tensors(make_model(seed=2), load(tmp_path))


def test_two_processes_at_once(tmp_path: Path) -> None:
    save_pretrained(make_model(), tmp_path)
    script = f"""
        from pathlib import Path
        from persimmon_ext.checkpoints import replacing
        with replacing.staged(Path({str(tmp_path)!r})):
            print("locked", flush=True)
            input()
    """
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match=r"Another process is saving to .* right now; wait until it is done"):
            save_pretrained(make_model(seed=1), tmp_path)
        assert_same_tensors(make_model(), load(tmp_path))
        other.communicate("\n")
    save_pretrained(make_model(seed=1), tmp_path)
    assert_same_tensors(make_model(seed=1), load(tmp_path))


def test_two_processes_that_save_again_and_again(tmp_path: Path) -> None:
    """Each save is whole or a BlockingIOError; what is there is one of the models, whoever was last."""
    script = f"""
        import sys
        from checkpoint_helpers import make_model
        model, saved = make_model(seed=int(sys.argv[1])), 0
        print("ready", flush=True)
        input()
        for round in range(25):
            try:
                model.save_pretrained({str(tmp_path)!r}, max_shard_size=[3000, "5GB"][round % 2])
                saved += 1
            except BlockingIOError:
                pass
        print(saved)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([*command, "1"], env=environment, **pipes) as one,
        subprocess.Popen([*command, "2"], env=environment, **pipes) as other,
    ):
        for process in (one, other):
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            process.stdin.write("\n")
            process.stdin.flush()
        saved = [int(process.communicate()[0]) for process in (one, other)]
    assert max(saved) > 0
    found = load(tmp_path).lm_head.weight
    assert any(torch.equal(found, make_model(seed=seed).lm_head.weight) for seed in (1, 2))
    assert_same_tensors(
        make_model(seed=1 if torch.equal(found, make_model(seed=1).lm_head.weight) else 2), load(tmp_path)
    )
    assert not list(tmp_path.glob(".saving-*"))


@pytest.mark.parametrize("later", SIZES)
@pytest.mark.parametrize("size", SIZES)
def test_a_save_while_it_is_being_loaded(
    tmp_path: Path, size: int | str, later: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(make_model(), tmp_path, max_shard_size=size)
    opened = loading.open_weights
    left = [1]

    def saving_first(path: Path, **options: bool) -> WeightFile:
        if left and (path.name == "model.safetensors" or "-00002-of-" in path.name):
            left.pop()
            save_pretrained(make_model(seed=1), tmp_path, max_shard_size=later)
        return opened(path, **options)

    monkeypatch.setattr(loading, "open_weights", saving_first)
    with pytest.raises(CheckpointError, match=r"Another model was saved to .* while it was being loaded"):
        load(tmp_path)
    assert_same_tensors(make_model(seed=1), load(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "journal"])
def test_a_linked_journal_is_none(tmp_path: Path, kind: str) -> None:
    folder, elsewhere = tmp_path / "checkpoint", tmp_path / "elsewhere"
    save_pretrained(make_model(), folder)
    elsewhere.mkdir()
    (elsewhere / "files.json").write_text('["config.json", "model.safetensors"]')
    if kind == "folder":
        (folder / ".saving-x").symlink_to(elsewhere)
    else:
        (folder / ".saving-x").mkdir()
        (folder / ".saving-x" / "files.json").symlink_to(elsewhere / "files.json")
    assert_same_tensors(make_model(), load(folder))
    save_pretrained(make_model(seed=1), folder)
    assert_same_tensors(make_model(seed=1), load(folder))
    assert (elsewhere / "files.json").exists()


def test_a_conversion_does_not_go_on_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("of somebody else")
    (tmp_path / ".saving-converted").symlink_to("elsewhere")
    with (
        pytest.raises(CheckpointError, match=r"\.saving-converted is a link, and nothing is written or removed"),
        replacing.staged(tmp_path, resumed="converted"),
    ):
        pass
    assert (tmp_path / "elsewhere" / "file").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/b", "", "..", 3])
def test_a_journal_may_not_name_files_elsewhere(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "checkpoint"
    save_pretrained(make_model(), folder)
    staging = folder / ".saving-x"
    staging.mkdir()
    (staging / "files.json").write_text(json.dumps([name]))
    with pytest.raises(CheckpointError, match=r"files\.json is no list of file names"):
        load(folder)


@pytest.mark.parametrize(
    ("journal", "match"),
    [
        ("[]", "names no weights, as every save does"),
        ('["config.json"]', "names no weights"),
        ('["quantized.safetensors"]', r"names quantized\.safetensors, which are neither beside it nor"),
        ("[" * 100_000, "is no list of file names"),
    ],
    ids=["empty", "no weights", "lost", "nested"],
)
def test_a_journal_that_no_save_wrote_deletes_nothing(tmp_path: Path, journal: str, match: str) -> None:
    save_pretrained(make_model(), tmp_path)
    before = contents(tmp_path)
    staging = tmp_path / ".saving-x"
    staging.mkdir()
    (staging / "files.json").write_text(journal)
    with pytest.raises(CheckpointError, match=match):
        load(tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_put_right_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pretrained(make_model(), tmp_path)
    staging = tmp_path / ".saving-x"
    staging.mkdir()
    (staging / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    (staging / "files.json").write_text('["config.json", "model.safetensors"]')

    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(replacing.os, "replace", read_only)
    with pytest.raises(CheckpointError, match="was interrupted while its files took their names, and they can't"):
        load(tmp_path)
