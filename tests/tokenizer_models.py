"""Small sentencepiece models for the tokenizer's tests, trained when first asked for."""

from __future__ import annotations

import functools
import inspect
import io
import runpy
from pathlib import Path
from typing import Any

import sentencepiece
from hypothesis import strategies as st

import persimmon_ext
from persimmon_ext.tokenizer import PersimmonTokenizer

TINY = Path(persimmon_ext.__file__).parent / "assets" / "tiny" / "tokenizer.model"
#: Python code that never changes: other text makes other pieces, and other ties between ways to cut white space.
CORPUS = Path(__file__).parent / "corpus.txt"
SPACE = "\u2581"

WORDS = ["def ", "    ", "return", "\n", "</s>", "<s>", "<unk>", "|ENDOFTEXT|", "<0x41>", "é", "☃", "👍🏽", "\t", " "]
# Arbitrary Unicode, and texts of things that tokenizers get wrong.
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(WORDS), max_size=20).map("".join)


def source(*modules: Any) -> str:
    """Source text of modules of the standard library."""
    return "\n".join(inspect.getsource(module) for module in modules)


@functools.cache
def train(**options: Any) -> bytes:
    """A serialized model trained with sentencepiece's defaults, except for ``options``."""
    model = io.BytesIO()
    lines = [line for line in CORPUS.read_text(encoding="utf-8").split("\n") if line]
    defaults = {"vocab_size": 600, "minloglevel": 2, "num_threads": 1, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **{**defaults, **options}
    )
    return model.getvalue()


def prefixed() -> bytes:
    """A model as Persimmon's: dummy prefix, byte fallback, identity, white space kept; with a user-defined symbol."""
    return train(
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols="|ENDOFTEXT|,\n",
    )


@functools.cache
def training_script() -> dict[str, Any]:
    """The names of ``examples/train_tokenizer.py``."""
    return runpy.run_path(str(Path(__file__).parents[1] / "examples" / "train_tokenizer.py"))


@functools.cache
def exact() -> bytes:
    """A model with a dummy prefix and with the exact scores that the embedded tokenizer has too."""
    model: bytes = training_script()["exact_scores"](prefixed())
    return model


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """sentencepiece's own view of a model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@functools.cache
def tiny() -> PersimmonTokenizer:
    """The embedded tokenizer; not to be changed by a test."""
    return PersimmonTokenizer.from_pretrained(TINY)
