"""The model's configuration: its fields, its checks, and its config.json.

Reads the config.json of transformers 4 (``rope_theta``, ``rope_scaling``, ``torch_dtype``) and 5 (``rope_parameters``,
``dtype``) and writes one that both read.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from persimmon_ext.config_checks import check_config
from persimmon_ext.config_labels import numbered_labels, read_labels
from persimmon_ext.links import check_links
from persimmon_ext.rope_parameters import (
    PRETRAINED_LENGTH,
    PRETRAINED_LENGTH_TYPES,
    standardize_rope_parameters,
)

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
MODEL_TYPE = "persimmon"
_DEFAULT_ROPE_THETA = 25000.0
_DEFAULT_PARTIAL_ROTARY_FACTOR = 0.5

ConfigType = TypeVar("ConfigType", bound="PersimmonConfig")


class PersimmonConfig:
    """Sizes and options of a Persimmon model; the defaults are those of Persimmon-8B.

    Attributes may be changed afterwards; `validate` checks them again, and the models and `save_pretrained` call it.
    Names not listed here are kept in `extra`, readable as attributes, and written back.
    ``rope_theta``, ``rope_scaling``, ``partial_rotary_factor``, ``torch_dtype`` and ``num_key_value_heads`` are
    accepted too, in the meaning of transformers 4. Raises ValueError or TypeError naming the field and its value.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        *,
        vocab_size: int = 262144,
        hidden_size: int = 4096,
        intermediate_size: int = 16384,
        num_hidden_layers: int = 36,
        num_attention_heads: int = 64,
        hidden_act: str = "relu2",
        max_position_embeddings: int = 16384,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        use_cache: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        tie_word_embeddings: bool = False,
        qk_layernorm: bool = True,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        num_labels: int | None = None,
        problem_type: str | None = None,
        id2label: Mapping[int, str] | Mapping[str, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        rope_parameters: Mapping[str, Any] | None = None,
        dtype: str | torch.dtype | None = None,
        architectures: list[str] | None = None,
        **extra: Any,
    ) -> None:
        self.extra: dict[str, Any] = {}
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        self.output_attentions = output_attentions
        self.output_hidden_states = output_hidden_states
        self.return_dict = return_dict
        self.tie_word_embeddings = tie_word_embeddings
        self.qk_layernorm = qk_layernorm
        self.hidden_dropout = hidden_dropout
        self.attention_dropout = attention_dropout
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = list(eos_token_id) if isinstance(eos_token_id, (list, tuple)) else eos_token_id
        self.problem_type = problem_type
        self.architectures = architectures
        torch_dtype = extra.pop("torch_dtype", None)
        self.dtype = dtype if dtype is not None else torch_dtype
        self.id2label, self.label2id = read_labels(num_labels, id2label, label2id)
        self._set_rope(rope_parameters, extra)
        stated = {name: extra.pop(name, None) for name in ("model_type", "num_key_value_heads", "head_dim")}
        self.extra.update(extra)
        self.validate()
        self._check_implied(stated)

    def _check_implied(self, stated: Mapping[str, Any]) -> None:
        # Some files spell out what follows from the other fields; they may not contradict them.
        implied = {
            "model_type": MODEL_TYPE,
            "num_key_value_heads": self.num_attention_heads,  # Persimmon does not group its heads
            "head_dim": self.head_dim,
        }
        for name, value in stated.items():
            if value is not None and value != implied[name]:
                raise ValueError(f"{name} must be {implied[name]!r} for this Persimmon model, got {value!r}.")

    def _set_rope(self, rope_parameters: Mapping[str, Any] | None, extra: dict[str, Any]) -> None:
        # A non-empty rope_scaling wins over rope_parameters, and both over the keys beside them, as in transformers.
        parameters = extra.pop("rope_scaling", None) or rope_parameters
        theta, share = extra.pop("rope_theta", None), extra.pop("partial_rotary_factor", None)
        self._rope_parameters = standardize_rope_parameters(
            parameters,
            rope_theta=_DEFAULT_ROPE_THETA if theta is None else theta,
            partial_rotary_factor=_DEFAULT_PARTIAL_ROTARY_FACTOR if share is None else share,
            max_position_embeddings=self.max_position_embeddings,
        )
        if extra.get(PRETRAINED_LENGTH) is not None and self._rope_parameters["rope_type"] in PRETRAINED_LENGTH_TYPES:
            self._rope_parameters[PRETRAINED_LENGTH] = extra.pop(PRETRAINED_LENGTH)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """rope_type, rope_theta, partial_rotary_factor and what the type needs; see `persimmon_ext.rope`."""
        return self._rope_parameters

    @rope_parameters.setter
    def rope_parameters(self, parameters: Mapping[str, Any] | None) -> None:
        self._rope_parameters = standardize_rope_parameters(
            parameters,
            rope_theta=self._rope_parameters["rope_theta"],
            partial_rotary_factor=self._rope_parameters["partial_rotary_factor"],
            max_position_embeddings=self.max_position_embeddings,
        )

    @property
    def dtype(self) -> str | None:
        """Name of the weights' dtype, such as "bfloat16", or None; a torch.dtype may be assigned."""
        return self._dtype

    @dtype.setter
    def dtype(self, dtype: str | torch.dtype | None) -> None:
        self._dtype = _dtype_name(dtype)

    @property
    def num_labels(self) -> int:
        """Number of classes of the classification heads; setting another number names them LABEL_0, LABEL_1, …"""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        named = numbered_labels(number)
        if number != len(self.id2label):
            self.id2label, self.label2id = named

    @property
    def head_dim(self) -> int:
        """D, the width of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """R, how many of a head's dims are rotated."""
        return int(self.head_dim * self.rope_parameters["partial_rotary_factor"])

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, PersimmonConfig) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self._fields().items())})"

    def validate(self) -> None:
        """Raises ValueError or TypeError, naming the field and its value, unless every field makes sense."""
        check_config(self)

    def _fields(self) -> dict[str, Any]:
        fields = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "extra"}
        return {**self.extra, **fields, "rope_parameters": self.rope_parameters, "dtype": self.dtype}

    def to_dict(self) -> dict[str, Any]:
        """Returns a copy of all fields as config.json has them, with transformers 4's spellings beside 5's."""
        fields = {"model_type": MODEL_TYPE, **self._fields(), **self._legacy_spellings()}
        return copy.deepcopy(fields)

    def _legacy_spellings(self) -> dict[str, Any]:
        rope = self.rope_parameters
        beside = ("rope_theta", "partial_rotary_factor")
        scaling = {key: value for key, value in rope.items() if key not in beside}
        legacy = {key: rope[key] for key in beside}
        legacy["rope_scaling"] = scaling if rope["rope_type"] != "default" else None
        if rope["rope_type"] == "longrope":
            legacy[PRETRAINED_LENGTH] = rope[PRETRAINED_LENGTH]
        return {**legacy, "torch_dtype": self.dtype}

    @classmethod
    def from_dict(cls: type[ConfigType], fields: Mapping[str, Any], **overrides: Any) -> ConfigType:
        """Makes a config from the contents of a config.json; `overrides` win over its values."""
        if not isinstance(fields, Mapping):
            raise TypeError(f"from_dict takes a dictionary, got {fields!r}.")
        return cls(**_merge(fields, overrides))

    @classmethod
    def from_pretrained(cls: type[ConfigType], path: str | os.PathLike[str], **overrides: Any) -> ConfigType:
        """Reads a folder's config.json, or the file itself. FileNotFoundError, or ValueError if it is not an object, or
        the folder's is a link to elsewhere."""
        file = Path(path)
        if file.is_dir():
            check_links(file, [CONFIG_NAME])
            file = file / CONFIG_NAME
        if not file.is_file():
            raise FileNotFoundError(f"There is no {CONFIG_NAME} at {str(path)!r}; give a local folder or file.")
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # the latter: thousands of nested brackets
            raise ValueError(f"{str(file)!r} is not valid JSON: {error}.") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{str(file)!r} must hold a JSON object, got {type(fields).__name__}.")
        return cls.from_dict(fields, **overrides)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes config.json into `folder`, which is made if missing; nothing if a field makes no sense."""
        self.validate()
        try:
            text = json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise TypeError(f"A field of the config cannot be written as JSON: {error}.") from error
        directory = Path(folder)
        if directory.is_file():
            raise NotADirectoryError(f"{str(folder)!r} is a file; give a folder.")
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".{CONFIG_NAME}.{os.getpid()}.tmp"
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, directory / CONFIG_NAME)
        finally:
            temporary.unlink(missing_ok=True)


def _dtype_name(dtype: str | torch.dtype | None) -> str | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"dtype must be the name of a torch dtype such as 'bfloat16', got {dtype!r}.")
    return name


def _merge(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    # An override also beats the other spellings of its field, and the labels that it makes obsolete.
    merged = copy.deepcopy(dict(fields))
    if {"rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor"} & overrides.keys():
        rope = merged.pop("rope_scaling", None) or merged.get("rope_parameters") or {}
        merged["rope_parameters"] = rope
        if isinstance(rope, dict):  # anything else is refused by the constructor
            beside = {name: rope.pop(name, None) for name in ("rope_theta", "partial_rotary_factor")}
            merged.update({name: value for name, value in beside.items() if value is not None})
    if {"rope_scaling", "rope_parameters"} & overrides.keys():
        for name in ("rope_parameters", PRETRAINED_LENGTH):
            merged.pop(name, None)
    if {"dtype", "torch_dtype"} & overrides.keys():
        merged.pop("dtype", None)
        merged.pop("torch_dtype", None)
    labels = merged.get("id2label")
    kept = len(labels) if isinstance(labels, dict) else None
    if "id2label" in overrides or overrides.get("num_labels") not in (None, kept):
        for name in ("num_labels", "id2label", "label2id"):
            merged.pop(name, None)
    return {**merged, **overrides}
