"""Those who may read a folder and not write to it, while somebody else saves there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from checkpoint_helpers import assert_same_tensors, load, make_model

from persimmon_ext.checkpoints import replacing, save_pretrained


def test_a_journal_can_be_looked_for_by_whoever_can_load(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with replacing.staged(tmp_path) as staging:
        assert staging.stat().st_mode & 0o777 == 0o755


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
