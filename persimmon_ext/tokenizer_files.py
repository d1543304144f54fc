"""The tokenizer's files: finding and reading them, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persimmon_ext.links import check_links

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TOKENIZER_JSON_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
#: All that a tokenizer may have, the first of which it must.
TOKENIZER_FILES = (MODEL_FILE, TOKENIZER_JSON_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE, CHAT_TEMPLATE_FILE)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
# transformers writes 1e30 for "no limit".
UNLIMITED = int(1e30)


def find_model(path: str | os.PathLike[str]) -> tuple[Path, Path | None]:
    """The sentencepiece file that ``path`` means, and the folder of its settings (None for a lone file).

    Raises FileNotFoundError where there is none, TypeError for what is no path, and ValueError for a folder with a file
    that is a link to elsewhere.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"The tokenizer's place must be a path, not {path!r}.")
    path = Path(path)
    if path.is_dir():
        check_links(path, TOKENIZER_FILES)  # a lone file is what the caller named
        model = path / MODEL_FILE
        if not model.is_file():
            raise FileNotFoundError(f"The folder {path} holds no {MODEL_FILE}, the sentencepiece model of a tokenizer.")
        return model, path
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no tokenizer at {path}: it must be a folder with {MODEL_FILE}, or that file. "
            "Nothing is downloaded."
        )
    return path, None


def read_settings(folder: Path) -> dict[str, Any]:
    """Keyword arguments of ``PersimmonTokenizer`` from a folder's JSON files, each of which may be absent.

    Raises ValueError, naming file and field, for content of the wrong form.
    """
    config = _read_json(folder / CONFIG_FILE)
    tokens = _read_json(folder / SPECIAL_TOKENS_FILE)
    settings: dict[str, Any] = {}
    for name in NAMED_TOKENS:
        if name in tokens or name in config:
            settings[name] = _token_text(config.get(name, tokens.get(name)), name)
    flags = ("add_bos_token", "add_eos_token", "split_special_tokens")
    for name in (*flags, "padding_side", "truncation_side"):
        if config.get(name) is not None:
            settings[name] = config[name]
    length = config.get("model_max_length")
    if length is not None:
        if isinstance(length, bool) or not isinstance(length, (int, float)) or math.isnan(length):
            raise ValueError(f"model_max_length in {CONFIG_FILE} must be a number, not {length!r}.")
        settings["model_max_length"] = None if length >= UNLIMITED // 2 else int(length)
    additional = _additional_tokens(config, tokens)
    added = _added_tokens(config, additional)
    if additional is not None:
        settings["additional_special_tokens"] = additional
    settings["added_tokens"] = added
    template = _chat_template(folder, config.get("chat_template"))
    if template is not None:
        settings["chat_template"] = template
    return settings


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content


def _token_text(value: Any, name: str) -> str | None:
    """A token as transformers writes it: a text, a dict with ``content``, or null."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{name} in the tokenizer's settings must be a text, not {value!r}.")
    return text


def _additional_tokens(config: Mapping[str, Any], tokens: Mapping[str, Any]) -> list[str] | None:
    for source in (config, tokens):
        for name in ("additional_special_tokens", "extra_special_tokens"):
            value = source.get(name)
            if isinstance(value, dict):
                value = list(value.values())
            if value is None:
                continue
            if not isinstance(value, list):
                raise ValueError(f"{name} in the tokenizer's settings must be a list, not {value!r}.")
            return [text for entry in value if (text := _token_text(entry, name)) is not None]
    return None


def _added_tokens(config: Mapping[str, Any], additional: list[str] | None) -> dict[str, int]:
    """Tokens of ``added_tokens_decoder`` with their ids; its special ones join ``additional``."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ValueError(f"added_tokens_decoder in {CONFIG_FILE} must be an object, not {decoder!r}.")
    added: dict[str, int] = {}
    for key, entry in decoder.items():
        text = _token_text(entry, "added_tokens_decoder")
        if text is None or not key.isdecimal():
            raise ValueError(f"added_tokens_decoder in {CONFIG_FILE} has a bad entry: {key!r}: {entry!r}.")
        added[text] = int(key)
        if additional is not None and isinstance(entry, dict) and entry.get("special") and text not in additional:
            additional.append(text)
    return added


def _chat_template(folder: Path, template: Any) -> str | None:
    file = folder / CHAT_TEMPLATE_FILE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text: {error}.") from error
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"chat_template in {CONFIG_FILE} must be a text, not {type(template).__name__}.")
    return template


def settings_file(
    roles: Mapping[str, str | None],
    additional: list[str],
    added_tokens: list[dict[str, Any]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``, in the words of transformers.

    Args:
        roles: ``bos_token`` and so on.
        additional: special tokens without a role.
        added_tokens: the list of that name in ``tokenizer.json``.
        settings: further arguments of ``PersimmonTokenizer``, by name.
    """
    return {
        # The class that reads tokenizer.json as it stands; transformers' LlamaTokenizer would rebuild it as BPE.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **roles,
        "additional_special_tokens": additional,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added_tokens
        },
        **settings,
        "model_max_length": settings["model_max_length"] or UNLIMITED,
    }


def write_files(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> list[str]:
    """Writes all files under temporary names, then renames them: a failure leaves what was there before.

    Returns the paths. Raises NotADirectoryError where ``folder`` is a file.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"The tokenizer is saved to a folder, but {target} is a file.")
    target.mkdir(parents=True, exist_ok=True)
    temporary = {name: target / f".{name}.{os.getpid()}.tmp" for name in files}
    try:
        for name, content in files.items():
            temporary[name].write_bytes(content)
        for name in files:
            temporary[name].replace(target / name)
    finally:
        for path in temporary.values():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    return [str(target / name) for name in files]


def to_json(content: Mapping[str, Any]) -> bytes:
    """JSON as it is written to disk."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
