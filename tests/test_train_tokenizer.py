"""The script that trained the embedded tokenizer, and what it promises about the file that is shipped."""

from __future__ import annotations

import sentencepiece
from hypothesis import given, settings
from tokenizer_models import TEXTS, TINY, tiny, training_script

from persimmon_ext.sentencepiece_proto import NORMAL, USER_DEFINED, parse_model


def test_files_are_sorted_sources():
    script = training_script()
    root = script["stdlib_root"]()
    names = [path.relative_to(root).as_posix() for path in script["stdlib_files"]()]
    assert names == sorted(set(names))
    assert {"argparse.py", "json/decoder.py", "email/message.py"} <= set(names)
    excluded = {"test", "tests", "idlelib", "site-packages"}
    assert not any(excluded.intersection(name.split("/")) or "_sysconfigdata" in name for name in names)


def test_the_split_is_complete_and_depends_on_names_alone():
    script = training_script()
    training, held_out = script["split_files"]()
    assert sorted(training + held_out) == sorted(script["stdlib_files"]())
    assert 0.01 < len(held_out) / len(training) < 0.06
    assert all(script["is_held_out"](path) for path in held_out)


def test_training_is_deterministic():
    script = training_script()
    root = script["stdlib_root"]()
    files = [root / name for name in ("textwrap.py", "json/decoder.py", "json/encoder.py")]
    first, second = (script["train"](files, vocab_size=500) for _ in range(2))
    assert first == second
    assert sentencepiece.SentencePieceProcessor(model_proto=first).get_piece_size() == 500


def test_scores_of_the_embedded_model_add_up_exactly():
    pieces = parse_model(TINY.read_bytes()).pieces
    assert len(pieces) == 4096
    assert all((piece.score * 64).is_integer() for piece in pieces if piece.type == NORMAL)
    assert not any(piece.type == USER_DEFINED for piece in pieces)


@settings(max_examples=50, deadline=None)
@given(before=TEXTS, after=TEXTS)
def test_the_end_of_text_is_never_cut(before, after):
    ids = tiny().vocabulary.encode(f"{before}|ENDOFTEXT|{after}")
    assert tiny().convert_tokens_to_ids("|ENDOFTEXT|") in ids


def test_new_lines_and_indentation_are_single_pieces():
    assert tiny().tokenize("\n    \n        x") == ["\n", "\u2581" * 4, "\n", "\u2581" * 8, "x"]
