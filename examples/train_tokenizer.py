"""Trains the tokenizer of the embedded checkpoint on the sources of Python's standard library.

    python examples/train_tokenizer.py --output tokenizer.model

4096 pieces, Unigram, byte fallback, identity normalisation, all white space kept, no prefix space: decoding gives
back the text that was encoded, except that U+2581, with which sentencepiece writes a space, decodes as a space.
About a minute on 2 cores; the same Python and sentencepiece versions give the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import string
import struct
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import sentencepiece

from persimmon_ext.sentencepiece_proto import NORMAL, USER_DEFINED, Piece, iterate_fields, parse_model, parse_piece

VOCAB_SIZE = 4096
END_OF_TEXT = "|ENDOFTEXT|"
HELD_OUT_SHARE = 0.03
# Tests and IDLE are no model of style, site-packages is not the standard library, and
# _sysconfigdata holds the paths of the machine on which Python was built.
EXCLUDED_FOLDERS = frozenset({"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "__pycache__"})
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")


def stdlib_root() -> Path:
    """Folder of this Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_files() -> list[Path]:
    """The standard library's source files, sorted by their path relative to its root, so in one order everywhere."""
    root = stdlib_root()
    relative = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = sorted((path for path in relative if not _excluded(path)), key=lambda path: path.as_posix())
    return [root / path for path in kept]


def _excluded(path: Path) -> bool:
    return any(part in EXCLUDED_FOLDERS or part.startswith(EXCLUDED_PREFIXES) for part in path.parts)


def is_held_out(path: Path) -> bool:
    """Whether a file of the standard library is kept from training: decided by a hash of its relative path alone."""
    digest = hashlib.sha256(path.relative_to(stdlib_root()).as_posix().encode()).digest()
    return int.from_bytes(digest[:4], "little") < HELD_OUT_SHARE * 2**32


def split_files() -> tuple[list[Path], list[Path]]:
    """The training files and the held-out files (about 3%), each in the order of ``stdlib_files``."""
    training: list[Path] = []
    held_out: list[Path] = []
    for path in stdlib_files():
        (held_out if is_held_out(path) else training).append(path)
    return training, held_out


def read_source(path: Path) -> str:
    """The text of one source file; a byte that is not UTF-8 (a few files use other encodings) is dropped."""
    return path.read_text(encoding="utf-8", errors="ignore")


def train(files: Iterable[Path], vocab_size: int = VOCAB_SIZE) -> bytes:
    """Trains on the lines of ``files`` and returns the serialized sentencepiece model."""
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(files),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="unigram",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["\n", END_OF_TEXT],
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        max_sentence_length=8192,
        num_threads=2,
        minloglevel=2,
    )
    return exact_scores(model.getvalue())


def _lines(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        yield from (line for line in read_source(path).split("\n") if line)


def exact_scores(model: bytes) -> bytes:
    """Rewrites the scores so that sums of them are exact in 32-bit floats.

    sentencepiece adds a text's scores in 32-bit floats and other libraries in 64-bit ones: where two ways to cut a
    run of white space cost the same, rounding would decide, and differently. Multiples of 1/64 add up exactly to
    2**18. User-defined pieces become normal ones for the same reason (their score depends on their length in bytes):
    a new line costs as little as the likeliest piece, and the end of text nothing, so that it is never cut.
    """
    normal = [piece.score for piece in parse_model(model).pieces if piece.type == NORMAL]
    likeliest = round(max(normal) * 64) / 64
    result = bytearray()
    for number, value, start, end in iterate_fields(model):
        if number != 1 or isinstance(value, int):
            result += model[start:end]
            continue
        piece = parse_piece(value)
        if piece.type == NORMAL:
            piece = replace(piece, score=round(piece.score * 64) / 64)
        elif piece.type == USER_DEFINED:
            piece = replace(piece, type=NORMAL, score=0.0 if piece.text == END_OF_TEXT else likeliest)
        message = _serialize(piece)
        result += b"\x0a" + _varint(len(message)) + message
    return bytes(result)


def _serialize(piece: Piece) -> bytes:
    text = piece.text.encode()
    score = struct.pack("<f", piece.score)
    return b"\x0a" + _varint(len(text)) + text + b"\x15" + score + b"\x18" + _varint(piece.type)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def main() -> None:
    """Trains, writes the model and prints how well it compresses files that it has not seen."""
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint's tokenizer.")
    parser.add_argument("--output", type=Path, default=Path("tokenizer.model"), help="file to write")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    arguments = parser.parse_args()
    training, held_out = split_files()
    print(f"{len(training)} training files, {len(held_out)} held out")
    model = train(training, arguments.vocab_size)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_name(f"{arguments.output.name}.{os.getpid()}.tmp")
    temporary.write_bytes(model)
    temporary.replace(arguments.output)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = [read_source(path) for path in held_out]
    tokens = sum(len(ids) for ids in processor.encode(texts))
    print(f"wrote {arguments.output}: {processor.get_piece_size()} pieces, {len(model)} bytes")
    print(f"held-out files: {sum(map(len, texts))} characters, {sum(map(len, texts)) / tokens:.2f} characters a token")


if __name__ == "__main__":
    main()
