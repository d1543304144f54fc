"""GenerationConfig: the settings of ``generate``, and how the caller's, the checkpoint's and the defaults combine."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from persimmon_ext.config import GENERATION_CONFIG_NAME
from persimmon_ext.generation.warning import warn
from persimmon_ext.links import check_links

DEFAULT_TOP_K = 50

# Settings of transformers that are absent here, and the values that ask for nothing: older files spell them out.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "assistant_confidence_threshold": (0, 0.4),
    "assistant_lookbehind": (10,),
    "disable_compile": (False, True),
    "diversity_penalty": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "is_assistant": (False,),
    "low_memory": (False,),
    "num_assistant_tokens_schedule": ("constant", "heuristic"),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "target_lookbehind": (10,),
    "token_healing": (False,),
}
_ABOUT_THE_FILE = ("transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash")


@dataclass
class GenerationConfig:
    """The settings of ``generate``; each is an argument of it too. None: not set, so the next source decides.

    Sources, the first wins: arguments of the call, its ``generation_config``, the model's (read from the checkpoint's
    generation_config.json, or else the token ids of its config), and the defaults said here.

    Args:
        max_new_tokens: new tokens at most. Wins over `max_length`; 20 if neither is given.
        max_length: tokens at most, prompt included.
        min_new_tokens: new tokens before a row may end. Wins over `min_length`.
        min_length: tokens before a row may end, prompt included.
        max_time: seconds after which generation stops with the token that is being made.
        stop_strings: a text or several; a row ends with the token that completes one. Needs `tokenizer`.
        eos_token_id: tokens that end a row. None or an empty list as an argument: no token does.
        pad_token_id: fills rows after their end; default: the first of `eos_token_id`.
        bos_token_id: what generation without a prompt starts from.
        num_beams: beam search over that many sequences a row; default 1, none.
        length_penalty: beams are ranked by log-probability / length ** length_penalty; default 1.
        early_stopping: end a beam search once `num_beams` sequences have ended (True), once better ones are unlikely
            (False, the default), or impossible ("never").
        num_return_sequences: results a row; default 1. More need `do_sample` or as many beams.
        do_sample: draw tokens from the distribution that the next five settings shape, in their order.
        temperature: divides the logits, above 0.
        top_k: keep that many likeliest tokens; 0 or None keeps all. The default is 50, as in transformers.
        top_p: keep the fewest likeliest tokens of at least this probability in sum, in (0, 1].
        min_p: keep tokens at least this many times as likely as the likeliest, in [0, 1].
        typical_p: keep the tokens whose information is nearest to the distribution's entropy, of at least this
            probability in sum, in (0, 1]. Source: Meister et al., "Locally Typical Sampling", arXiv:2202.00666.
        repetition_penalty: above 1 makes tokens that occurred less likely, sampling or not.
        no_repeat_ngram_size: no run of that many tokens occurs twice in a row's ids.
        bad_words_ids: lists of ids; none of them is completed.
        suppress_tokens: ids that never occur.
        seed: an integer, or one a row. The same seed gives the same tokens; each row has its own random stream, which
            goes by the place of a token in its sequence. Default: from torch's global generator.
        use_cache: False computes the whole sequence at each step.
        cache_implementation: "static" (default) allocates the cache once for the longest result, "dynamic" lets it
            grow in steps, "int8" keeps it in 8 bits a value and one scale a head and token.
        prefill_chunk_size: tokens of a prompt that one forward call takes; default: 4096 over all rows.
        prompt_lookup_num_tokens: speculate with up to that many tokens that followed the latest n-gram before.
        max_matching_ngram_size: the longest n-gram of prompt lookup; default 3.
        num_assistant_tokens: tokens that `assistant_model` drafts at a time; default 5.
        return_dict_in_generate: return a `GenerateOutput` with the sequences and the cache.
        output_scores: add the scores that each token was chosen by, fp32 [B, V] with -inf for what was filtered out.
        output_logits: add the model's logits, fp32 [B, V].
        output_attentions: add each layer's attention probabilities at each step.
        output_hidden_states: add each layer's hidden states at each step.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    max_time: float | None = None
    stop_strings: str | Sequence[str] | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    num_return_sequences: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    seed: int | Sequence[int] | None = None
    use_cache: bool | None = None
    cache_implementation: str | None = None
    prefill_chunk_size: int | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    num_assistant_tokens: int | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None

    @classmethod
    def from_model_config(cls, config: Any) -> GenerationConfig:
        """The token ids of a model's config."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return cls(**{name: getattr(config, name, None) for name in names})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """From names and values, such as transformers writes. Raises ValueError for a setting that is absent here,
        unless its value asks for nothing."""
        foreign = _foreign(values)
        if foreign:
            name = foreign[0]
            raise ValueError(f"generation_config sets {name}={values[name]!r}, {absent(name)}")
        return cls(**{name: value for name, value in values.items() if name in _FIELDS})

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> GenerationConfig | None:
        """From a checkpoint's generation_config.json; None where there is no such file.

        Settings that are absent here are left out with a warning that names them. Raises ValueError for a broken file,
        or one that is a link to elsewhere.
        """
        file = Path(folder) / GENERATION_CONFIG_NAME
        check_links(file.parent, [GENERATION_CONFIG_NAME])
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # the latter: thousands of nested brackets
            raise ValueError(f"{file} is not JSON: {error}.") from None
        if not isinstance(values, dict):
            raise ValueError(f"{file} must hold an object, got {type(values).__name__}.")
        foreign = _foreign(values)
        if foreign:
            named = ", ".join(f"{name}={values[name]!r}" for name in foreign)
            warn(f"{file} sets {named}, which persimmon_ext doesn't have: generation goes without.")
        return cls(**{name: value for name, value in values.items() if name in _FIELDS})

    def to_dict(self) -> dict[str, Any]:
        """The settings that are set."""
        return {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}

    def save(self, folder: str | os.PathLike[str]) -> str:
        """Writes generation_config.json; returns that name."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (Path(folder) / GENERATION_CONFIG_NAME).write_text(text, encoding="utf-8")
        return GENERATION_CONFIG_NAME


_FIELDS = tuple(field.name for field in fields(GenerationConfig))


def _foreign(values: Mapping[str, Any]) -> list[str]:
    """The names of settings that are absent here and ask for something."""
    return [
        name
        for name, value in values.items()
        if name not in _FIELDS
        and name not in _ABOUT_THE_FILE
        and value is not None
        and value not in _NEUTRAL.get(name, ())
    ]


def absent(name: str) -> str:
    """The end of a sentence about a setting that doesn't exist."""
    close = difflib.get_close_matches(name, _FIELDS, n=1)
    return "which persimmon_ext doesn't have" + (f"; did you mean {close[0]}?" if close else ".")


def combine(model: Any, generation_config: Any, arguments: Mapping[str, Any]) -> GenerationConfig:
    """The settings of one call. `generation_config`: a GenerationConfig (transformers' too), a dict, or None.

    An argument given as None unsets what the other sources say. Raises TypeError for an argument that doesn't exist, or
    for what is no generation_config.
    """
    for name in arguments:
        if name not in _FIELDS:
            raise TypeError(f"generate() got an argument {name!r}, {absent(name)}")
    of_model = getattr(model, "generation_config", None)
    if of_model is None:
        of_model = GenerationConfig.from_model_config(model.config)
    settings = {"top_k": DEFAULT_TOP_K} | _read(of_model) | _read(generation_config)
    return replace(GenerationConfig(**settings), **arguments)


def _read(source: Any) -> dict[str, Any]:
    if source is None:
        return {}
    if not isinstance(source, Mapping) and not hasattr(source, "to_dict"):
        raise TypeError(f"generation_config must be a GenerationConfig or a dict, got {type(source).__name__}.")
    return GenerationConfig.from_dict(source if isinstance(source, Mapping) else source.to_dict()).to_dict()
