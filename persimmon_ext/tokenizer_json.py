"""Writes a sentencepiece Unigram model in the format of the ``tokenizers`` library (``tokenizer.json``).

The ids are those of sentencepiece wherever the scores add up without rounding (sentencepiece sums them in 32-bit
floats, ``tokenizers`` in 64-bit ones: two cuts that cost the same may be told apart by rounding alone) and the text
is not normalised by a character map (``tokenizers`` applies it to whole grapheme clusters).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from persimmon_ext.sentencepiece_proto import BYTE, MODEL_TYPES, NORMAL, UNIGRAM, UNKNOWN, USER_DEFINED, ModelProto
from persimmon_ext.vocabulary import SPACE_SYMBOL


def tokenizer_json(
    model: ModelProto,
    added_tokens: Mapping[str, int],
    special: Iterable[str],
    prefix: Sequence[str],
    suffix: Sequence[str],
) -> dict[str, Any]:
    """The content of ``tokenizer.json``.

    Args:
        model: the parsed sentencepiece model, pieces included.
        added_tokens: texts that are cut out before the model sees the rest, with their ids.
        special: those of them that decoding may skip.
        prefix, suffix: tokens put before and after each text (``<s>`` and the like).

    Raises ValueError for a model that the format cannot express.
    """
    _check(model)
    special = frozenset(special)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": text in special,
            }
            for text, index in sorted(added_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": _pre_tokenizer(model),
        "post_processor": _post_processor(added_tokens, prefix, suffix),
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": {
            "type": "Unigram",
            "unk_id": next((i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN), None),
            "vocab": [[piece.text, score] for piece, score in zip(model.pieces, _scores(model), strict=True)],
            "byte_fallback": any(piece.type == BYTE for piece in model.pieces),
        },
    }


def _check(model: ModelProto) -> None:
    if model.model_type != UNIGRAM:
        kind = MODEL_TYPES.get(model.model_type, model.model_type)
        raise ValueError(f"tokenizer.json can be written for a unigram model only; this is a {kind} model.")
    if model.treat_whitespace_as_suffix:
        raise ValueError("tokenizer.json cannot express a model trained with treat_whitespace_as_suffix.")


def _scores(model: ModelProto) -> list[float]:
    """Scores under which plain pieces compete as they do in sentencepiece.

    A user-defined piece there gets a score by its length in bytes. Control, byte and unused pieces are never found
    in a text there, but here any piece is: their scores make them dearer than spelling the same text in full.
    """
    normal = [piece.score for piece in model.pieces if piece.type == NORMAL] or [0.0]
    longest = max(len(piece.text) for piece in model.pieces)
    floor = (longest + 1) * (min(normal) - 100.0)
    scores = []
    for piece in model.pieces:
        if piece.type == NORMAL:
            scores.append(piece.score)
        elif piece.type == USER_DEFINED:
            scores.append(len(piece.text.encode()) * max(normal) - 0.1)
        else:
            scores.append(floor)
    return scores


def _normalizers(model: ModelProto) -> list[dict[str, Any]]:
    space = SPACE_SYMBOL if model.escape_whitespaces else " "
    steps: list[dict[str, Any]] = []
    if model.precompiled_charsmap:
        charsmap = base64.b64encode(model.precompiled_charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.remove_extra_whitespaces:
        steps.append(_replace({"Regex": f"^ +|[ {space}]+$"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": space})
    if model.escape_whitespaces:
        steps.append(_replace({"String": " "}, SPACE_SYMBOL))
    return steps


def _pre_tokenizer(model: ModelProto) -> dict[str, Any] | None:
    """Keeps a written-out ``<0x41>`` from being taken for the byte, as it would be where a character is unknown.

    The cut after ``<`` changes nothing else as long as no piece reaches across it; otherwise scores must do.
    """
    spelled = [piece.text for piece in model.pieces if piece.type in (NORMAL, USER_DEFINED)]
    if not any(piece.type == BYTE for piece in model.pieces) or any("<0" in text for text in spelled):
        return None
    pattern = {"Regex": "<(?=0x[0-9A-F]{2}>)"}
    return {"type": "Split", "pattern": pattern, "behavior": "MergedWithPrevious", "invert": False}


def _decoders(model: ModelProto) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [_replace({"String": SPACE_SYMBOL}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _post_processor(ids: Mapping[str, int], prefix: Sequence[str], suffix: Sequence[str]) -> dict[str, Any] | None:
    if not prefix and not suffix:
        return None

    def template(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before = [{"SpecialToken": {"id": token, "type_id": type_id}} for token in prefix]
        after = [{"SpecialToken": {"id": token, "type_id": type_id}} for token in suffix]
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in dict.fromkeys([*prefix, *suffix])
        },
    }
