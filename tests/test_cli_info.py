"""``persimmon-ext info``: the facts of this installation, as a table and as JSON."""

from __future__ import annotations

import json

import pytest
import torch

import persimmon_ext
from persimmon_ext import cli
from persimmon_ext.cli import info


def test_info_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["version"] == persimmon_ext.__version__
    assert facts["torch"] == torch.__version__
    assert facts["instruction_set"] in facts["instruction_sets"]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["ops"]["layer_norm"]["cpu"]
    assert facts["ops"]["layer_norm"]["autograd"]
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for name in facts["ops"]:
        assert f"\n{name} " in out
    assert facts["instruction_set"] in out


def test_info_shows_gpus_and_architectures() -> None:
    facts = info.gather()
    facts |= {
        "cuda_version": "13.0",
        "cuda_architectures": ["8.0", "9.0a"],
        "gpus": [{"name": "A GPU", "capability": "9.0", "memory_bytes": 80 * 2**30}],
    }
    text = info.render(facts)
    assert "CUDA 13.0 for 8.0, 9.0a" in text
    assert "A GPU, compute capability 9.0, 80.0 GiB" in text
