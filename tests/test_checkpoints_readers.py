"""Those who may read a folder and not write to it, while somebody else saves there."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from checkpoint_helpers import assert_same_tensors, load, make_model

from persimmon_ext import embedded_checkpoint
from persimmon_ext.checkpoints import CheckpointError, loading, replacing, save_pretrained


@pytest.mark.parametrize("mode", [0o755, 0o2775])
def test_a_journal_can_be_looked_for_by_whoever_can_load(tmp_path: Path, mode: int) -> None:
    """And with setgid, by which a group shares a folder, the new files are the group's as the old ones are."""
    tmp_path.chmod(mode)
    with replacing.staged(tmp_path) as staging:
        assert stat.S_IMODE(staging.stat().st_mode) == mode


def test_the_staging_folder_of_someone_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pretrained(make_model(), tmp_path)
    (tmp_path / ".saving-x").mkdir()
    of_anything, denials = os.stat, []

    def denied(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if ".saving-x/" in os.fspath(path):
            denials.append(path)
            raise PermissionError(13, "Permission denied", path)
        return of_anything(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", denied)
    assert_same_tensors(make_model(), load(tmp_path))
    assert denials


def test_a_tokenizer_that_does_not_fit_for_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the other model's, so that is what the reader is told."""
    save_pretrained(make_model(), tmp_path)
    shutil.copy(embedded_checkpoint() / "tokenizer.model", tmp_path)
    with pytest.raises(ValueError, match="don't belong together"):
        load(tmp_path)
    check_fits = loading.check_fits

    def saving_first(*arguments: Any) -> None:
        save_pretrained(make_model(seed=1), tmp_path)
        check_fits(*arguments)

    monkeypatch.setattr(loading, "check_fits", saving_first)
    with pytest.raises(CheckpointError, match=r"Another model was saved to .* while it was being loaded"):
        load(tmp_path)
