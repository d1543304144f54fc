"""Those who may read a folder and not write to it, while somebody else saves there."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from checkpoint_helpers import assert_same_tensors, load, make_model

from persimmon_ext.checkpoints import replacing, save_pretrained


@pytest.mark.parametrize("mode", [0o755, 0o2775])
def test_a_journal_can_be_looked_for_by_whoever_can_load(tmp_path: Path, mode: int) -> None:
    """And with setgid, by which a group shares a folder, the new files are the group's as the old ones are."""
    tmp_path.chmod(mode)
    with replacing.staged(tmp_path) as staging:
        assert stat.S_IMODE(staging.stat().st_mode) == mode


def test_the_staging_folder_of_someone_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pretrained(make_model(), tmp_path)
    (tmp_path / ".saving-x").mkdir()
    stat = os.stat

    def denied(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if ".saving-x/" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", denied)
    assert_same_tensors(make_model(), load(tmp_path))
