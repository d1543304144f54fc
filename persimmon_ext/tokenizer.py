"""Persimmon's tokenizer: a sentencepiece model with special tokens, batches and chat."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from persimmon_ext import tokenizer_batch as batching
from persimmon_ext import tokenizer_files as files
from persimmon_ext.chat import DEFAULT_CHAT_TEMPLATE, render_chat
from persimmon_ext.hub_files import HubRequest, find_or_download
from persimmon_ext.sentencepiece_proto import parse_model
from persimmon_ext.special_tokens import SpecialTokens
from persimmon_ext.token_codec import TokenCodec
from persimmon_ext.tokenizer_batch import BatchEncoding
from persimmon_ext.tokenizer_json import tokenizer_json
from persimmon_ext.vocabulary import SentencePieceVocabulary

_FROM_MODEL = "(the model's own)"


class PersimmonTokenizer(TokenCodec):
    """Text to ids and back, with the ids of sentencepiece and the interface of transformers' tokenizers.

    A special token written in a text (``</s>``, ``|ENDOFTEXT|``) becomes its one id, as in transformers; the texts
    between them are encoded by sentencepiece one by one. ``split_special_tokens=True`` leaves everything to
    sentencepiece. For a model with byte fallback, identity normalisation and no white space removed (Persimmon's),
    ``decode(encode(text, add_special_tokens=False)) == text`` for every text, except that U+2581, with which
    sentencepiece writes a space, comes back as a space.
    """

    model_input_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        model: bytes | str | os.PathLike[str],
        *,
        bos_token: str | None = _FROM_MODEL,
        eos_token: str | None = _FROM_MODEL,
        unk_token: str | None = _FROM_MODEL,
        pad_token: str | None = _FROM_MODEL,
        additional_special_tokens: Sequence[str] | None = None,
        added_tokens: Mapping[str, int] | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        split_special_tokens: bool = False,
        padding_side: str = "left",
        truncation_side: str = "right",
        model_max_length: int | None = None,
        chat_template: str = DEFAULT_CHAT_TEMPLATE,
    ):
        """Builds a tokenizer from a sentencepiece model.

        Args:
            model: the serialized model, or the path of its file.
            bos_token, eos_token, unk_token, pad_token: tokens of the vocabulary; by default those that the model
                names. Persimmon has no padding token: set one (``eos_token`` will do) before padding.
            additional_special_tokens: further special tokens; by default ``|ENDOFTEXT|`` where the model has it.
                Control pieces of the model are always special.
            added_tokens: tokens with ids after the model's pieces.
            add_bos_token, add_eos_token: what ``add_special_tokens=True`` puts around each text.
            split_special_tokens: do not look for special tokens in texts.
            padding_side: ``left`` suits generation.
            model_max_length: the limit of ``truncation=True`` without ``max_length``; None is no limit.
            chat_template: Jinja source of ``apply_chat_template``.

        Raises FileNotFoundError, TypeError or ValueError, with a sentence, for anything that cannot be used.
        """
        if isinstance(model, bytes):
            vocabulary = SentencePieceVocabulary(model)
        elif isinstance(model, (str, os.PathLike)):
            file, _ = files.find_model(model)
            vocabulary = SentencePieceVocabulary(file.read_bytes(), str(file))
        else:
            raise TypeError(f"model must be a sentencepiece model as bytes or its path, not {type(model).__name__}.")
        named = zip(files.NAMED_TOKENS, (bos_token, eos_token, unk_token, pad_token), strict=True)
        roles = {
            name: vocabulary.named_piece(name.removesuffix("_token")) if token is _FROM_MODEL else token
            for name, token in named
        }
        special_tokens = SpecialTokens(vocabulary, roles, additional_special_tokens, added_tokens or {})
        batching.check_flag("split_special_tokens", split_special_tokens)
        super().__init__(vocabulary, special_tokens, split_special_tokens)
        self.add_bos_token = batching.check_flag("add_bos_token", add_bos_token)
        self.add_eos_token = batching.check_flag("add_eos_token", add_eos_token)
        self.padding_side = batching.check_side("padding_side", padding_side)
        self.truncation_side = batching.check_side("truncation_side", truncation_side)
        if model_max_length is not None:
            model_max_length = batching.check_length("model_max_length", model_max_length, minimum=1)
        self.model_max_length = model_max_length
        if not isinstance(chat_template, str):
            raise TypeError(f"chat_template must be a text (Jinja source), not {type(chat_template).__name__}.")
        self.chat_template = chat_template

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **settings: Any,
    ) -> PersimmonTokenizer:
        """Loads a folder with ``tokenizer.model`` (its JSON files are optional) or a lone sentencepiece file; where
        ``path`` is neither and reads owner/name, that repository of the Hugging Face Hub, of which the tokenizer's
        files are downloaded.

        ``settings`` override what the folder says. ``revision``, ``cache_dir``, ``local_files_only`` and ``token``: as
        for a model. Raises FileNotFoundError where there is no tokenizer, ImportError where the Hub is needed and
        huggingface_hub isn't installed, and ValueError, naming the file, for one that cannot be read.
        """
        request = HubRequest(revision, cache_dir, local_files_only, token)
        file, folder = files.find_model(find_or_download(path, request, _download, _is_whole))
        stored = {} if folder is None else files.read_settings(folder)
        return cls(file, **{**stored, **settings})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> tuple[str, ...]:
        """Writes ``tokenizer.model``, ``tokenizer_config.json``, ``special_tokens_map.json`` and ``tokenizer.json``.

        transformers' ``AutoTokenizer`` loads the folder and gives the same ids. All files are written before the
        first takes its name. Returns their paths. Raises ValueError for a model that ``tokenizer.json`` cannot
        express and NotADirectoryError where ``folder`` is a file.
        """
        special = self.special_tokens
        prefix, suffix = self._affixes(add_special_tokens=True)
        fast = tokenizer_json(
            parse_model(self.vocabulary.model),
            special.matched,
            special.special,
            self.convert_ids_to_tokens(prefix),
            self.convert_ids_to_tokens(suffix),
        )
        stored = ("add_bos_token", "add_eos_token", "split_special_tokens", "padding_side", "truncation_side")
        config = files.settings_file(
            {name: special.role(name) for name in files.NAMED_TOKENS},
            special.additional,
            fast["added_tokens"],
            {name: getattr(self, name) for name in (*stored, "model_max_length", "chat_template")},
        )
        tokens = {name: config[name] for name in files.NAMED_TOKENS if config[name] is not None}
        contents = {
            files.MODEL_FILE: self.vocabulary.model,
            files.TOKENIZER_JSON_FILE: files.to_json(fast),
            files.SPECIAL_TOKENS_FILE: files.to_json({**tokens, "additional_special_tokens": special.additional}),
            files.CONFIG_FILE: files.to_json(config),
        }
        return tuple(files.write_files(folder, contents))

    def __repr__(self) -> str:
        roles = ", ".join(f"{name}={self.special_tokens.role(name)!r}" for name in files.NAMED_TOKENS)
        return f"PersimmonTokenizer({len(self)} tokens, {roles}, padding_side={self.padding_side!r})"

    def encode(self, text: str, **options: Any) -> Any:
        """The ids of one text: ``self(text, **options)["input_ids"]``, so a list, or a tensor [1, T]."""
        if not isinstance(text, str):
            raise TypeError(f"encode takes one text, not {type(text).__name__}; call the tokenizer for a batch.")
        return self(text, **options)["input_ids"]

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
    ) -> BatchEncoding:
        """Encodes one text or a list of texts.

        Args:
            text: a str gives flat lists of T ids (with ``return_tensors``: [1, T]), a list of B texts B rows.
            text_pair: not supported; Persimmon has no pairs of texts.
            add_special_tokens: put ``bos_token`` (and ``eos_token``, if ``add_eos_token``) around each text.
            padding: True or ``longest`` (of the batch), ``max_length``, or False.
            truncation: True cuts to ``max_length``, special tokens included; ``max_length`` without padding cuts
                too unless this is False.
            max_length: length in tokens; by default ``model_max_length``.
            padding_side: overrides the tokenizer's.
            pad_to_multiple_of: round the padded length up.
            return_tensors: ``pt`` or ``np`` for int64 [B, T], None for lists.
            return_attention_mask: also return 1 for tokens and 0 for padding, of the same form.

        Raises TypeError or ValueError, with a sentence, for anything else.
        """
        if text_pair is not None:
            raise ValueError("Persimmon has no pairs of texts: join them into one and leave text_pair out.")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not all(isinstance(entry, str) for entry in texts):
            raise TypeError(f"The tokenizer takes a text or a list of texts, not {_describe(text)}.")
        if truncation is None and not padding and max_length is not None:
            truncation = True
        prefix, suffix = self._affixes(add_special_tokens)
        rows = [self.ids(entry) for entry in texts]
        if batching.truncates(truncation):
            limit = self._limit(max_length, reserved=len(prefix) + len(suffix))
            rows = [batching.truncate(row, limit, self.truncation_side) for row in rows]
        rows = [prefix + row + suffix for row in rows]
        return batching.collate(
            rows,
            single=isinstance(text, str),
            padding=batching.padding_mode(padding),
            max_length=self.model_max_length if max_length is None else max_length,
            padding_side=batching.check_side("padding_side", padding_side or self.padding_side),
            multiple=pad_to_multiple_of,
            pad_token_id=self.pad_token_id,
            return_tensors=return_tensors,
            return_attention_mask=return_attention_mask,
        )

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        add_special_tokens: bool = True,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """A conversation in the form that the chat model knows: ``human: {prompt}\\n\\nadept:``.

        Args:
            conversation: a list of dicts with ``role`` (user, assistant; system in the first) and ``content``, or a
                list of such lists.
            chat_template: Jinja source used instead of the tokenizer's.
            add_generation_prompt: end with ``adept:``, for the model to go on.
            tokenize: False returns the text (for a list of conversations, texts), without special tokens.
            add_special_tokens: encode as any prompt, ``bos_token`` first. transformers leaves it out here.
            return_dict: the ``BatchEncoding``; False returns its ``input_ids`` alone.
            options: ``padding``, ``truncation``, ``return_tensors`` and so on, as for a call.

        Raises TypeError or ValueError, naming the message, for a conversation that cannot be rendered.
        """
        template = self.chat_template if chat_template is None else chat_template
        variables: dict[str, Any] = {name: self.special_tokens.role(name) or "" for name in files.NAMED_TOKENS}
        variables["add_generation_prompt"] = add_generation_prompt

        def render(messages: Any) -> str:
            return render_chat(template, messages, **variables)

        listed = isinstance(conversation, (list, tuple)) and len(conversation) > 0
        batched = listed and all(isinstance(entry, (list, tuple)) for entry in conversation)
        text = [render(messages) for messages in conversation] if batched else render(conversation)
        if not tokenize:
            return text
        encoding = self(text, add_special_tokens=add_special_tokens, **options)
        return encoding if return_dict else encoding["input_ids"]

    def _affixes(self, add_special_tokens: bool) -> tuple[list[int], list[int]]:
        """The ids put before and after each text."""
        wanted = ((self.add_bos_token, self.bos_token_id), (self.add_eos_token, self.eos_token_id))
        prefix, suffix = ([index] if add_special_tokens and on and index is not None else [] for on, index in wanted)
        return prefix, suffix

    def _limit(self, max_length: int | None, reserved: int) -> int | None:
        """How many ids of its own a truncated text keeps; None for no limit."""
        limit = self.model_max_length if max_length is None else max_length
        if limit is None:
            return None
        return batching.check_length("max_length", limit, minimum=reserved) - reserved


def _describe(value: Any) -> str:
    """The kind of a wrong argument, for errors: of a list, the kind of its first wrong entry."""
    if isinstance(value, (list, tuple)):
        wrong = next(entry for entry in value if not isinstance(entry, str))
        return f"a {type(value).__name__} with an entry of type {type(wrong).__name__}"
    return type(value).__name__


def _download(fetch: Any, errors: Any) -> Path:
    folder: Path = fetch(files.MODEL_FILE).parent
    for name in files.TOKENIZER_FILES:
        with suppress(errors.EntryNotFoundError):
            fetch(name)
    return folder


def _is_whole(cached: Callable[[str], Path | None]) -> bool:
    """Whether the cache has what every saved tokenizer has: any other file may never have been there."""
    return all(map(cached, (files.MODEL_FILE, files.CONFIG_FILE)))
