"""Tokens that stand for themselves: how they are named, found in a text and told apart from ordinary pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from persimmon_ext.vocabulary import SentencePieceVocabulary

if TYPE_CHECKING:
    from persimmon_ext.token_codec import TokenCodec

END_OF_TEXT = "|ENDOFTEXT|"


class SpecialTokens:
    """The special and the added tokens of one tokenizer.

    Special tokens are those with a role (bos, eos, unk, pad), all control pieces of the model and the additional
    ones. Added tokens have ids after the model's own. Both are cut out of a text, longest first, before
    sentencepiece sees the rest.
    """

    def __init__(
        self,
        vocabulary: SentencePieceVocabulary,
        roles: Mapping[str, str | None],
        additional: Sequence[str] | None,
        added: Mapping[str, int],
    ):
        """``roles`` maps ``bos_token`` and so on to a token or None. Raises ValueError for a token without an id."""
        self._vocabulary = vocabulary
        self._added = self._checked_added(added)
        self._added_texts = {index: text for text, index in self._added.items()}
        self._control = vocabulary.control_pieces()
        if additional is None:
            additional = [END_OF_TEXT] if self.find(END_OF_TEXT) is not None else []
        elif not isinstance(additional, (list, tuple)) or not all(isinstance(token, str) for token in additional):
            raise TypeError(f"additional_special_tokens must be a list of texts, not {additional!r}.")
        self._additional = list(additional)
        for token in self._additional:
            self._require("additional_special_tokens", token)
        self._roles = {name: self._require(name, token) for name, token in roles.items()}
        self._index()

    def __len__(self) -> int:
        return len(self._added)

    @property
    def additional(self) -> list[str]:
        """Special tokens without a role, ordered by id."""
        return [text for text in self.special if text not in self._roles.values()]

    @property
    def special(self) -> dict[str, int]:
        """Every special token with its id, ordered by id."""
        return {text: index for text, index in self.matched.items() if index in self._special_ids}

    @property
    def matched(self) -> dict[str, int]:
        """Every token that is cut out of a text, with its id, ordered by id."""
        return self._matched

    @property
    def added(self) -> dict[str, int]:
        """Tokens with ids after the model's own."""
        return self._added

    def role(self, name: str) -> str | None:
        """The token that has a role such as ``pad_token``."""
        return self._roles[name]

    def assign(self, name: str, token: str | None) -> None:
        """Gives a role to a token of the vocabulary. Raises ValueError for one that is not in it."""
        self._roles[name] = self._require(name, token)
        self._index()

    def find(self, token: str) -> int | None:
        """The id of an added token or a piece, or None."""
        index = self._added.get(token)
        return self._vocabulary.find(token) if index is None else index

    def added_text(self, index: int) -> str | None:
        """The added token with this id, or None."""
        return self._added_texts.get(index)

    def content(self, index: int) -> tuple[str, bool] | None:
        """The text of a matched token and whether it is special; None for an ordinary piece."""
        text = self._texts.get(index)
        return None if text is None else (text, index in self._special_ids)

    def is_special(self, index: int) -> bool:
        """Whether decoding may skip this id."""
        return index in self._special_ids

    def split(self, text: str) -> Iterator[str | int]:
        """Cuts ``text`` at the matched tokens: yields ids for them and the texts between, none of them empty."""
        parts = [text] if self._pattern is None else self._pattern.split(text)
        for number, part in enumerate(parts):
            if number % 2:
                yield self._matched[part]
            elif part:
                yield part

    def _index(self) -> None:
        named = [token for token in self._roles.values() if token is not None]
        special = {token: self._id(token) for token in (*named, *self._control, *self._additional)}
        self._matched = dict(sorted({**special, **self._added}.items(), key=lambda item: item[1]))
        self._special_ids = frozenset(special.values())
        self._texts = {index: text for text, index in self._matched.items()}
        longest_first = sorted(self._matched, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def _id(self, token: str) -> int:
        index = self.find(token)
        if index is None:
            raise ValueError(f"The token {token!r} is not in the vocabulary.")
        return index

    def _require(self, name: str, token: str | None) -> str | None:
        if token is None:
            return None
        if not isinstance(token, str):
            raise TypeError(f"{name} must be a text or None, not {token!r}.")
        if not token or self.find(token) is None:
            size = len(self._vocabulary) + len(self._added)
            raise ValueError(f"{name} {token!r} is not one of the vocabulary's {size} tokens.")
        return token

    def _checked_added(self, added: Mapping[str, int]) -> dict[str, int]:
        """The added tokens whose ids follow the model's; those that name a piece by its own id need no adding."""
        size = len(self._vocabulary)
        pairs = added.items() if isinstance(added, Mapping) else [(None, None)]
        if not all(isinstance(text, str) and isinstance(index, int) for text, index in pairs):
            raise TypeError(f"added_tokens must map texts to ids, not {added!r}.")
        new: dict[str, int] = {}
        for text, index in sorted(added.items(), key=lambda item: item[1]):
            known = self._vocabulary.find(text)
            if known == index:
                continue
            if known is not None:
                raise ValueError(f"The added token {text!r} has the id {index}, but it is already a piece, {known}.")
            if not text or index != size + len(new):
                raise ValueError(
                    f"The added token {text!r} has the id {index}: added tokens continue the model's {size} pieces "
                    f"without gaps, so {size + len(new)} is next."
                )
            new[text] = index
        return new


class Role:
    """A special token by its role, as an attribute of the tokenizer: a text of the vocabulary, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, tokenizer: TokenCodec | None, owner: type | None = None) -> str | None:
        if tokenizer is None:
            raise AttributeError(f"{self._name} belongs to a tokenizer, not to its class.")
        return tokenizer.special_tokens.role(self._name)

    def __set__(self, tokenizer: TokenCodec, token: str | None) -> None:
        tokenizer.special_tokens.assign(self._name, token)


class RoleId:
    """The id of a special token by its role; None where no token has it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.removesuffix("_id")

    def __get__(self, tokenizer: TokenCodec | None, owner: type | None = None) -> int | None:
        if tokenizer is None:
            raise AttributeError(f"{self._name}_id belongs to a tokenizer, not to its class.")
        token = tokenizer.special_tokens.role(self._name)
        return None if token is None else tokenizer.special_tokens.find(token)

    def __set__(self, tokenizer: TokenCodec, index: int | None) -> None:
        token = None if index is None else tokenizer.convert_ids_to_tokens(index)
        tokenizer.special_tokens.assign(self._name, token)
