"""The config of a checkpoint's language model, whichever model the folder holds."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persimmon_ext.config import CONFIG_NAME, MODEL_TYPE, PersimmonConfig

_FUYU = "fuyu"
_FUYU_ONLY = ("architectures", "text_config", "image_size", "patch_size", "num_channels", "image_token_id")
_OLDER_SPELLINGS = ("rope_theta", "rope_scaling", "partial_rotary_factor", "classifier_dropout")


def read_config(folder: Path, overrides: Mapping[str, Any]) -> PersimmonConfig:
    """The config of `folder`, with the fields `overrides` in place of its own; of a Fuyu model, its language model's.

    Raises ValueError or TypeError for a config.json that makes no sense.
    """
    fields = fuyu_fields(folder / CONFIG_NAME)
    if fields is not None:
        return PersimmonConfig.from_dict(fields, **overrides)
    return PersimmonConfig.from_pretrained(folder, **overrides)


def fuyu_fields(file: Path) -> dict[str, Any] | None:
    """What a Fuyu model's config.json says of its language model; None for another file.

    Early ones state it beside the fields of the image part, later ones in text_config.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None  # reading it as Persimmon's says what is wrong
    if not isinstance(fields, dict) or fields.get("model_type") != _FUYU:
        return None
    text = fields.get("text_config") or {}
    if not isinstance(text, dict):
        raise ValueError(f"text_config in {file} must be an object, got {text!r}.")
    beside = {name: value for name, value in fields.items() if name not in _FUYU_ONLY}
    return {**beside, "model_type": MODEL_TYPE, **text}


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Raises TypeError for a name that is no field of a config."""
    known = {*inspect.signature(PersimmonConfig.__init__).parameters, *_OLDER_SPELLINGS} - {"self", "extra"}
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise TypeError(
            f"from_pretrained() got an unexpected argument {unknown[0]!r}: it is neither one of its own nor a field of "
            "the config."
        )
