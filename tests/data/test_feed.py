"""The counts of a feed: predicted bytes, lost bytes, and errors for splits where nothing is left."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.feed import Feed, open_feed
from zerotollm.data.tokens.pretrained import pretrained_tokenizer
from zerotollm.data.tokens.shards import prepare_in_shards
from zerotollm.data.tokens.text import prepare
from zerotollm.errors import UsageError
from zerotollm.evaluation.loss import evaluate_batches

CHARACTERS = TokenizerConfig(kind="char", vocab_size=300, byte_fallback=False)


def written(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def uniform_bpb(feed: Feed) -> float:
    """Return the bits per byte of a model with uniform probabilities."""

    def uniform(params, batch):
        tokens = float(batch["weights"].sum())
        return {"nats": math.log(feed.vocab_size) * tokens, "tokens": tokens}

    batches = feed.evaluation("validation")
    batches = [batches[number] for number in range(len(batches))]
    return evaluate_batches(uniform, None, batches, num_bytes=feed.num_bytes["validation"])["bpb"]


# --- what a tokenizer loses


@pytest.fixture
def data(tmp_path):
    """Return a text with the given validation split, its last twentieth."""

    def make(validation: str, train: str = "") -> DataConfig:
        train = train or ("the sea and the river " * 100 * len(validation))[: 19 * len(validation)]
        path = tmp_path / "text.txt"
        path.write_text(train + validation, encoding="utf-8")
        return DataConfig(str(path), dir=str(tmp_path / "data"), context=16, batch_size=2, test_fraction=0)

    return make


def test_lost_characters_are_not_counted_and_are_reported(data):
    """50 known characters of one byte, then 50 unknown ones of three bytes."""
    feed = open_feed(data("the sea an" * 5 + "\u5929\u5730\u6c34\u706b\u98a8" * 10), CHARACTERS)
    assert feed.num_bytes["validation"] == 50
    assert feed.lost == {"validation": pytest.approx(150 / 200)}
    assert "75 % of the validation bytes" in feed.dropped
    assert feed.byte == "byte that is not lost"
    # A run of lost characters is one token, which costs bits and predicts no byte.
    assert uniform_bpb(feed) == pytest.approx(51 * math.log2(feed.vocab_size) / 50, rel=1e-12)


@pytest.mark.parametrize("normalization", ["nfc", "nfkc"])
def test_text_shortened_by_normalization_is_counted_as_predicted(data, normalization):
    """Full-width letters of three bytes become letters of one; `e` and an accent become one letter."""
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in "thesea")
    text = {"nfc": "the caf" + "e\u0301", "nfkc": wide}[normalization] * 6
    same = {"nfc": "the caf\u00e9", "nfkc": "thesea"}[normalization] * 6
    train = "the sea caf\u00e9 " * 200
    tokenizer = TokenizerConfig(vocab_size=280, normalization=normalization)
    made = open_feed(data(text, train=train[: 19 * len(text)]), tokenizer)
    plain = open_feed(data(same, train=train[: 19 * len(same)]), tokenizer)
    assert made.num_bytes["validation"] == len(same.encode()) == plain.num_bytes["validation"]
    assert made.lost["validation"] == pytest.approx(1 - len(same.encode()) / len(text.encode()))
    assert plain.lost == {}
    assert uniform_bpb(made) == pytest.approx(uniform_bpb(plain), rel=1e-12)


def test_a_tokenizer_without_loss_counts_every_byte(data):
    text = "the caf\u00e9 \u5929\ufb01\u2581\n" * 8
    feed = open_feed(data(text), TokenizerConfig(vocab_size=280))
    assert feed.num_bytes["validation"] == len(text.encode())
    assert (feed.lost, feed.dropped, feed.byte) == ({}, "", "byte")


def test_a_text_that_is_lost_entirely_is_refused(data):
    with pytest.raises(UsageError, match=r"no character of the validation text .*tokenizer\.byte_fallback"):
        open_feed(data("\u5929\u5730" * 30), CHARACTERS)
    some = replace(data("sea" * 30 + "\u5929" * 90), test_fraction=0.025, validation_fraction=0.025)
    feed = open_feed(some, CHARACTERS)
    with pytest.raises(UsageError, match="no character of the test text"):
        feed.evaluation("test")
    with pytest.raises(UsageError, match=r"has no test documents: raise data\.test_fraction"):
        open_feed(data("the sea" * 9), CHARACTERS).evaluation("test")


@pytest.mark.parametrize("special", [True, False])
def test_an_imported_tokenizer_loses_characters_too(data, special):
    """Also if its unk is not marked as special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", "</s>", "\u2581", *"theasndriv"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    other = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    other.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    other.decoder = decoders.Metaspace(prepend_scheme="never")
    other.add_special_tokens(["</s>", *(["<unk>"] if special else [])])
    made = pretrained_tokenizer(
        json.loads(other.to_str()), bos_id=1, eos_id=1, pad_id=None, source="the test"
    )
    feed = open_feed(data("the sea an" * 5 + "\u5929\u5730" * 10), made)
    assert feed.num_bytes["validation"] == 50
    assert feed.lost == {"validation": pytest.approx(60 / 110)}


def test_lost_bytes_are_the_same_prepared_in_shards(tmp_path):
    lines = [{"text": f"text {n} " + "\u5929" * (n % 3)} for n in range(60)]
    file = written(tmp_path / "a.jsonl", lines)
    data = DataConfig(file, dir=str(tmp_path / "whole"), validation_fraction=0.2)
    tokenizer = open_feed(
        DataConfig(written(tmp_path / "b.jsonl", lines[::3]), dir=str(tmp_path / "other")), CHARACTERS
    ).tokenizer
    whole = prepare(data, tokenizer).splits
    sharded = replace(data, dir=str(tmp_path / "sharded"))
    prepare_in_shards(sharded, tokenizer, shards=3)
    assert sum(split.lost_bytes for split in whole.values()) == 3 * 60
    for name, split in prepare(sharded, tokenizer).splits.items():
        assert (split.num_bytes, split.lost_bytes) == (whole[name].num_bytes, whole[name].lost_bytes)


# --- why nothing is left


def chats(lengths: list[int]) -> list[dict]:
    return [{"prompt": f"{n}", "completion": "x" * length} for n, length in enumerate(lengths)]


@pytest.fixture
def examples(tmp_path):
    def make(train: list[int], validation: list[int]) -> DataConfig:
        files = (
            written(tmp_path / f"{name}.jsonl", chats(lengths))
            for name, lengths in (("my", train), ("held", validation))
        )
        corpus, held_out = files
        return DataConfig(corpus, validation=held_out, dir=str(tmp_path / "data"), context=16)

    return make


@pytest.mark.parametrize(
    ("train", "validation", "line"),
    [
        (
            [4] * 9,
            [40, 50, 60],
            "all 3 validation examples of {} are",
        ),
        (
            [40] * 9,
            [4],
            "all 9 train examples of {} are",
        ),
        (
            [4] * 9,
            [40],
            "the only one of the validation examples of {} is",
        ),
    ],
)
def test_the_error_says_that_all_examples_are_too_long(examples, train, validation, line):
    data = examples(train, validation)
    with pytest.raises(UsageError) as caught:
        open_feed(data, CHARACTERS, objective="completion")
    files = data.validation if "validation" in line else data.corpus
    assert str(caught.value) == f"{line.format(files)} longer than 16 tokens: raise data.context"
    feed = open_feed(examples([4] * 9, [4, 40]), CHARACTERS, objective="completion")
    assert feed.dropped == "1: longer than 16 tokens"
    with pytest.raises(UsageError, match=r"has no test examples: name files for it as data\.test$"):
        feed.evaluation("test")


def test_the_error_says_which_file_has_no_example(examples):
    data = examples([4] * 9, [])
    with pytest.raises(UsageError) as caught:
        open_feed(data, CHARACTERS, objective="completion")
    assert str(caught.value) == f"{data.validation} has no validation examples: give more text"


@pytest.mark.parametrize("objective", ["likelihood", "completion"])
def test_the_error_says_why_no_pair_is_left(tmp_path, objective):
    rows = {"my": ["a\tb"] * 9, "held": ["a\t ", " \tb", "a\t" + "b" * 40]}
    for name, lines in rows.items():
        (tmp_path / f"{name}.tsv").write_text("".join(f"{line}\n" for line in lines))
    data = DataConfig(
        str(tmp_path / "my.tsv"),
        validation=str(tmp_path / "held.tsv"),
        dir=str(tmp_path / "data"),
        context=16,
    )
    with pytest.raises(UsageError) as caught:
        open_feed(data, CHARACTERS, objective=objective, pairs=objective == "likelihood")
    kind = "pairs" if objective == "likelihood" else "examples"
    assert str(caught.value).startswith(f"none of the 3 validation {kind} of ")
    assert "2: one side is empty; 1: longer than 16 tokens" in str(caught.value)
    assert str(caught.value).endswith("raise data.context")


def test_an_old_text_that_is_too_short_is_named(data, tmp_path):
    (tmp_path / "old.txt").write_text("the sea")
    new = replace(data("the sea and the river" * 9), old=str(tmp_path / "old.txt"))
    with pytest.raises(UsageError, match=r"old\.txt"):
        open_feed(replace(new, validation_fraction=0.3, replay=0.5), CHARACTERS)


# --- micro-batches


@pytest.mark.parametrize("objective", ["completion", "likelihood"])
def test_micro_batches_do_not_change_the_batches(tmp_path, objective):
    """Gradient accumulation changes memory, not the examples in a batch."""
    draw = np.random.default_rng(0)
    lines = "".join(f"{'a' * draw.integers(1, 12)}\t{'b' * draw.integers(1, 12)} {n}\n" for n in range(200))
    (tmp_path / "my.tsv").write_text(lines)
    data = DataConfig(str(tmp_path / "my.tsv"), dir=str(tmp_path / "data"), context=32, batch_size=8)
    one, eight = (
        open_feed(data, CHARACTERS, objective=objective, pairs=objective == "likelihood", micro_batches=parts)
        for parts in (1, 8)
    )
    assert one.training_shapes == eight.training_shapes
    assert one.tokens_per_step == eight.tokens_per_step
    for step in range(20):
        batches = one.training(seed=0)[step], eight.training(seed=0)[step]
        assert all(np.array_equal(batches[0][name], batches[1][name]) for name in batches[0])
