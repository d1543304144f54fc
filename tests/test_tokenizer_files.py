"""The tokenizer's files: what is saved loads again, here and in transformers, and bad files are named."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
import textwrap
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from tokenizer_models import SPACE, TEXTS, TINY, exact, prefixed, source, tiny, train

from persimmon_ext import tokenizer_files
from persimmon_ext.sentencepiece_proto import parse_model
from persimmon_ext.tokenizer import PersimmonTokenizer
from persimmon_ext.tokenizer_json import tokenizer_json

FILES = {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
TRICKY = [
    *("", " ", "  ", "     ", " a", "a ", "  a  b  ", "\n", "\n\n   \n", "\t\t", "\r\n", "\0", "<0x0A>", "<0xFF>a"),
    *("<s>", "a</s>b", "</s></s> x", "<unk>", " <unk> ", "|ENDOFTEXT|", "x|ENDOFTEXT|\ny", "|ENDOF", "|||ENDOFTEXT|||"),
    *(
        "é",
        "e\u0301",
        "☃",
        "👩‍🚀👍🏽",
        "日本語",
        "עברית",
        "\ufeffx",
        "\U0010ffff",
        SPACE,
        f"a {SPACE} b",
        "ﬁ",
        "\u00a0",
    ),
    *(" " * n for n in range(6, 40)),
    *("\n" + " " * n + "x" for n in range(20)),
]


@functools.cache
def saved(model: bytes) -> tuple[PersimmonTokenizer, transformers.PreTrainedTokenizerFast]:
    """Our tokenizer of a model, and transformers' of the folder that it saved."""
    ours = PersimmonTokenizer(model)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        return ours, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("model", [TINY.read_bytes, exact], ids=["embedded", "prefixed"])
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_transformers_gives_the_same_ids(model, add_special_tokens, text):
    ours, theirs = saved(model())
    expected = theirs.encode(text, add_special_tokens=add_special_tokens)
    assert ours.encode(text, add_special_tokens=add_special_tokens) == expected


@pytest.mark.parametrize("model", [TINY.read_bytes, exact, prefixed], ids=["embedded", "prefixed", "user-defined"])
@pytest.mark.parametrize("text", TRICKY)
def test_transformers_gives_the_same_ids_for_tricky_texts(model, text):
    ours, theirs = saved(model())
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.tokenize(text) == theirs.tokenize(text)


@pytest.mark.parametrize("text", [text for text in TRICKY if SPACE not in text and "\0" not in text])
def test_transformers_gives_the_same_ids_for_a_model_with_a_character_map(text):
    ours, theirs = saved(train())
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_transformers_gives_the_same_ids_for_source_code():
    ours, theirs = saved(TINY.read_bytes())
    text = source(textwrap, json.decoder, shutil)
    assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("text", ["<0x41>", "a<0x00><0xFF>", "<0xZZ>", "<<0x41>>", "x<0x7F"])
@pytest.mark.parametrize("model", [TINY.read_bytes, exact, prefixed], ids=["embedded", "prefixed", "user-defined"])
def test_bytes_that_are_spelled_out_are_text(model, text):
    ours, theirs = saved(model())
    ids = ours.encode(text, add_special_tokens=False)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == text


def test_transformers_decodes_and_batches_alike():
    ours, theirs = saved(TINY.read_bytes())
    ids = ours.encode("def f():\n    return '☃'</s>")
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    ours, theirs = PersimmonTokenizer(TINY, pad_token="</s>"), saved(TINY.read_bytes())[1]
    theirs.pad_token = "</s>"
    texts = ["a", "def f(x, y):", ""]
    for options in (
        {"padding": True},
        {"padding": "max_length", "max_length": 5, "truncation": True},
        {"max_length": 3},
    ):
        expected = theirs(texts, **options)
        assert dict(ours(texts, **options)) == {name: expected[name] for name in ("input_ids", "attention_mask")}


def test_transformers_reads_every_setting(tmp_path):
    ours = PersimmonTokenizer(
        TINY,
        added_tokens={"<pad>": 4096},
        pad_token="<pad>",
        add_eos_token=True,
        padding_side="right",
        truncation_side="left",
        model_max_length=128,
    )
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.pad_token_id) == (1, 2, 0, 4096)
    assert (theirs.padding_side, theirs.truncation_side, theirs.model_max_length) == ("right", "left", 128)
    assert theirs.chat_template == ours.chat_template
    assert (theirs.vocab_size, len(theirs)) == (ours.vocab_size, len(ours))
    assert theirs.get_vocab() == ours.get_vocab()
    assert theirs.encode("a<pad>|ENDOFTEXT|b") == ours.encode("a<pad>|ENDOFTEXT|b")
    again = PersimmonTokenizer.from_pretrained(tmp_path)
    assert repr(again) == repr(ours)
    assert again.encode("a<pad>b") == ours.encode("a<pad>b")
    assert (again.truncation_side, again.model_max_length, again.add_eos_token) == ("left", 128, True)


def test_what_transformers_saves_loads_here(tmp_path):
    _, theirs = saved(TINY.read_bytes())
    theirs.save_pretrained(tmp_path)
    shutil.copy(TINY, tmp_path)
    ours = PersimmonTokenizer.from_pretrained(tmp_path)
    assert ours.all_special_tokens == tiny().all_special_tokens
    assert ours.chat_template == tiny().chat_template
    assert ours.encode("a|ENDOFTEXT|b") == theirs.encode("a|ENDOFTEXT|b")


@pytest.mark.parametrize("seed", range(3))
def test_a_saved_folder_is_complete_and_clean(tmp_path, seed):
    paths = tiny().save_pretrained(tmp_path / "new" / str(seed))
    assert {Path(path).name for path in paths} == FILES
    assert {path.name for path in (tmp_path / "new" / str(seed)).iterdir()} == FILES
    assert (tmp_path / "new" / str(seed) / "tokenizer.model").read_bytes() == TINY.read_bytes()


def test_a_lone_file_or_a_bare_folder_is_enough(tmp_path):
    shutil.copy(TINY, tmp_path)
    for path in (tmp_path, str(tmp_path), tmp_path / "tokenizer.model"):
        assert PersimmonTokenizer.from_pretrained(path).encode("def f") == tiny().encode("def f")


def test_arguments_override_files(tmp_path):
    PersimmonTokenizer(TINY, padding_side="right", pad_token="</s>").save_pretrained(tmp_path)
    tokenizer = PersimmonTokenizer.from_pretrained(tmp_path, padding_side="left", add_bos_token=False)
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.add_bos_token) == ("left", "</s>", False)


def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes

    def full(path, content):
        if "tokenizer_config" in path.name:
            raise OSError("No space left on device")
        return write(path, content)

    monkeypatch.setattr(tokenizer_files.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        PersimmonTokenizer(prefixed()).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_settings_in_the_words_of_transformers_4(tmp_path):
    shutil.copy(TINY, tmp_path)
    token = {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": {**token, "content": "|ENDOFTEXT|"},
        "eos_token": token,
        "pad_token": None,
        "legacy": True,
        "sp_model_kwargs": {},
        "model_max_length": 1000000000000000019884624838656,
        "added_tokens_decoder": {"2": {**token, "special": True}, "4": {**token, "content": "|ENDOFTEXT|"}},
        "chat_template": [{"name": "default", "template": "T"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = PersimmonTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (4, 2, None)
    assert tokenizer.model_max_length is None
    assert tokenizer.chat_template == "T"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object, not list"),
        ("tokenizer_config.json", b"\xff\xfe", "not valid JSON"),
        ("special_tokens_map.json", "nul", "special_tokens_map.json is not valid JSON"),
        ("tokenizer_config.json", '{"bos_token": 3}', "bos_token .* must be a text, not 3"),
        ("tokenizer_config.json", '{"pad_token": "<none>"}', "pad_token '<none>' is not one of the vocabulary's 4096"),
        ("tokenizer_config.json", '{"padding_side": "up"}', "padding_side must be 'left' or 'right', not 'up'"),
        ("tokenizer_config.json", '{"padding_side": 3}', "padding_side must be 'left' or 'right', not 3"),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "model_max_length .* must be a number"),
        ("tokenizer_config.json", '{"model_max_length": 0}', "model_max_length must be at least 1"),
        ("tokenizer_config.json", '{"model_max_length": NaN}', "model_max_length .* must be a number"),
        ("tokenizer_config.json", '{"add_bos_token": "yes"}', "add_bos_token must be True or False, not 'yes'"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template .* must be a text, not int"),
        ("tokenizer_config.json", '{"additional_special_tokens": "x"}', "additional_special_tokens .* must be a list"),
        ("tokenizer_config.json", '{"additional_special_tokens": ["?!"]}', r"additional_special_tokens '\?!' is not"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', None),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder .* must be an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "y"}}', "added_tokens_decoder .* bad entry"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"9999": "~~"}}',
            "'~~' has the id 9999.* 4096 is next",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": "y"}}', "added token 'y' has the id 7"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8 text"),
        ("tokenizer.model", b"", "tokenizer.model is not a sentencepiece model: the model holds no pieces"),
        ("tokenizer.model", b"\x00" * 64, "is not a sentencepiece model"),
        ("tokenizer.model", b"not a model at all", "is not a sentencepiece model"),
        ("tokenizer.model", TINY.read_bytes()[:-3], "is not a sentencepiece model"),
        ("tokenizer.model", TINY.read_bytes()[:30000], "sentencepiece model"),
        ("tokenizer.model", b"\x0a\x05\x0a\x03abc", "is not a usable sentencepiece model"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    tiny().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if message is None:
        PersimmonTokenizer.from_pretrained(tmp_path)
        return
    with pytest.raises(ValueError, match=message):
        PersimmonTokenizer.from_pretrained(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(TypeError, match="place must be a path, not None"):
        PersimmonTokenizer.from_pretrained(None)
    with pytest.raises(FileNotFoundError, match="There is no tokenizer at"):
        PersimmonTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.model"):
        PersimmonTokenizer.from_pretrained(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        tiny().save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "bpe"}, "this is a bpe model"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_models_that_tokenizer_json_cannot_express(tmp_path, options, message):
    tokenizer = PersimmonTokenizer(train(**options))
    assert tokenizer.decode(tokenizer.encode("def f", add_special_tokens=False)).strip() == "def f"
    with pytest.raises(ValueError, match=message):
        tokenizer.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_scores_of_pieces_that_texts_do_not_hold():
    model = parse_model(prefixed())
    scores = dict(tokenizer_json(model, {}, [], [], [])["model"]["vocab"])
    cheapest = min(piece.score for piece in model.pieces if piece.type == 1)
    assert scores["<0x0A>"] == scores["<s>"] < cheapest * 6
