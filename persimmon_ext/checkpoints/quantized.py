"""What a config.json says about quantised weights.

    "quantization": {"format": "int4", "bits": 4, "group_size": 64, "version": 1}

The weights of such a folder are in files of their own names (:data:`folder.QUANTIZED_NAME`): a library that doesn't
know the field finds no weights and says so, where it would otherwise begin with random ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.config import CONFIG_NAME
from persimmon_ext.quantization import FORMATS, Format, parse_format

QUANTIZATION_FIELD = "quantization"
VERSION = 1
_FOREIGN_FIELD = "quantization_config"  # of bitsandbytes, GPTQ and others


def record(chosen: Format) -> dict[str, Any]:
    """What config.json says of weights in that format."""
    return {"format": chosen.name, "bits": chosen.bits, "group_size": chosen.group_size, "version": VERSION}


def stored_format(folder: Path) -> str | None:
    """The name of the format in which the weights of `folder` are quantised; None if they aren't.

    Raises CheckpointError for a format or version that this library doesn't read, or another library's.
    """
    file = folder / CONFIG_NAME
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None  # reading the config itself says what is wrong
    if not isinstance(fields, dict):
        return None
    foreign = fields.get(_FOREIGN_FIELD)
    if foreign is not None:
        method = foreign.get("quant_method") if isinstance(foreign, dict) else foreign
        raise CheckpointError(
            f"{file} has a {_FOREIGN_FIELD} ({method}): weights that another library quantised can't be read here."
        )
    stated = fields.get(QUANTIZATION_FIELD)
    if stated is None:
        return None
    name = stated.get("format") if isinstance(stated, dict) else None
    # Compared as JSON, where true is not 1.
    if not isinstance(name, str) or name not in FORMATS or _text(stated) != _text(record(FORMATS[name])):
        known = " or ".join(json.dumps(record(known)) for known in FORMATS.values())
        raise CheckpointError(
            f"{file} says that the weights are quantised as {json.dumps(stated)}; this version reads {known}."
        )
    return name


def _text(fields: Any) -> str:
    return json.dumps(fields, sort_keys=True)


def check_request(requested: str | None, stored: str | None, folder: Path) -> None:
    """Raises ValueError where the caller asks for another format than the one that the weights have, or none known."""
    if requested is None:
        return
    parse_format(requested)
    if stored is not None and requested != stored:
        raise ValueError(
            f"quantization is {requested!r}, but {folder} is quantised to {stored} already; "
            "load a 16-bit checkpoint to quantise it otherwise."
        )
