"""Text to ids and back, one text at a time: a sentencepiece vocabulary together with special tokens."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from persimmon_ext.special_tokens import Role, RoleId, SpecialTokens
from persimmon_ext.text_stream import IncrementalDecoder
from persimmon_ext.vocabulary import SentencePieceVocabulary


class TokenCodec:
    """What of a tokenizer does not concern batches, files or chat.

    ``split_special_tokens`` leaves texts to sentencepiece alone; otherwise special tokens are looked for first.
    """

    bos_token = Role()
    eos_token = Role()
    unk_token = Role()
    pad_token = Role()
    bos_token_id = RoleId()
    eos_token_id = RoleId()
    unk_token_id = RoleId()
    pad_token_id = RoleId()

    def __init__(self, vocabulary: SentencePieceVocabulary, special_tokens: SpecialTokens, split_special_tokens: bool):
        self.vocabulary = vocabulary
        self.special_tokens = special_tokens
        self.split_special_tokens = split_special_tokens

    def __len__(self) -> int:
        return len(self.vocabulary) + len(self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of the model's own pieces; ``len(tokenizer)`` counts added tokens too."""
        return len(self.vocabulary)

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token, ordered by id."""
        return list(self.special_tokens.special)

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of ``all_special_tokens``."""
        return list(self.special_tokens.special.values())

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return {token: index for index, token in enumerate(self.convert_ids_to_tokens(list(range(len(self)))))}

    def tokenize(self, text: str) -> list[str]:
        """The pieces of ``text``, special tokens found in it included and none added."""
        tokens: list[str] = self.convert_ids_to_tokens(self.ids(text))
        return tokens

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token (str), or the ids of a list of them.

        A token that is not in the vocabulary has the id of ``unk_token``. Raises TypeError for what is not a str.
        """
        if isinstance(tokens, str):
            index = self.special_tokens.find(tokens)
            return self.unk_token_id if index is None else index
        if not isinstance(tokens, Iterable) or isinstance(tokens, (bytes, Mapping)):
            raise TypeError(f"A token is a text; {tokens!r} is none, nor a list of them.")
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id (int), or the tokens of several; the space symbol is left in them.

        Raises TypeError for what is not an id and ValueError for one outside the vocabulary.
        """
        tokens = []
        for index in self.check_ids(ids):
            if not (skip_special_tokens and self.special_tokens.is_special(index)):
                added = self.special_tokens.added_text(index)
                tokens.append(self.vocabulary.piece(index) if added is None else added)
        return tokens[0] if isinstance(ids, (int, np.integer)) and tokens else tokens

    def ids(self, text: str) -> list[int]:
        """The ids of ``text``, with nothing put around it. Raises TypeError for what is not a str."""
        if not isinstance(text, str):
            raise TypeError(f"A text is a str, not {type(text).__name__}.")
        if self.split_special_tokens:
            return self.vocabulary.encode(text)
        ids: list[int] = []
        for part in self.special_tokens.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(self.vocabulary.encode(part))
        return ids

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of ids: an int, a list, or a 1-D tensor or array.

        Bytes that do not form a character become U+FFFD. Raises TypeError for what is not an id and ValueError for
        one outside the vocabulary.
        """
        decoder = IncrementalDecoder(self, skip_special_tokens)
        return decoder.put(ids) + decoder.finish()

    def batch_decode(self, rows: Any, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row of a 2-D tensor, an array or a list of lists."""
        if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
            raise TypeError(f"batch_decode takes rows of ids, not {rows!r}.")
        return [self.decode(row, skip_special_tokens) for row in rows]

    def check_ids(self, ids: Any) -> list[int]:
        """``ids`` (an int, an iterable of them, or a tensor or array of at most one dimension) as a list.

        Raises TypeError for anything that is not an integer and ValueError for an id outside the vocabulary.
        """
        if isinstance(ids, (torch.Tensor, np.ndarray)):
            if ids.ndim > 1:
                raise ValueError(f"One sequence of ids was expected, not shape {list(ids.shape)}; see batch_decode.")
            ids = ids.tolist()
        if isinstance(ids, (str, bytes, Mapping)):
            raise TypeError(f"Ids are integers, not {ids!r}.")
        values = list(ids) if isinstance(ids, Iterable) else [ids]
        size = len(self)
        checked = []
        for value in values:
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"Ids are integers, not {value!r}.")
            index = operator.index(value)
            if not 0 <= index < size:
                raise ValueError(f"The id {index} is outside the vocabulary of {size} tokens.")
            checked.append(index)
        return checked
