"""Held-out texts and passages that equal or nearly equal training text are counted and logged."""

import json
import random

import pytest

from zerotollm.data import overlap
from zerotollm.data.config import DataConfig
from zerotollm.data.overlap import PASSAGE, WINDOW, near_duplicates
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.examples import open_examples
from zerotollm.data.sources.parallel import open_parallel
from zerotollm.errors import UsageError

DRAW = random.Random(5)
COUNT = 40


def prose(characters: int = 300) -> str:
    words = (
        "".join(DRAW.choices("abcdefghijklmnopqrstuvwxyz", k=DRAW.randint(2, 9))) for _ in range(characters)
    )
    return " ".join(words)[:characters]


def logged(caplog) -> str:
    lines = [record.getMessage() for record in caplog.records if record.name == "zerotollm.data.overlap"]
    caplog.clear()
    assert len(lines) <= 1
    return "".join(lines)


def by_definition(train: list[str], held_out: list[str]) -> tuple[int, int]:
    def runs(text):
        content = " ".join(text.lower().split()).encode()
        return [content[i : i + WINDOW] for i in range(len(content) - WINDOW + 1)]

    known = {run for text in train for run in runs(text)}
    measured = [[run in known for run in runs(text)] for text in held_out]
    measured = [hits for hits in measured if hits]
    return sum(sum(hits) > len(hits) / 2 for hits in measured), len(measured)


def test_near_duplicates_are_counted_as_they_are_defined():
    train = [prose() for _ in range(30)]
    held_out = [prose() for _ in range(10)]
    for i, share in enumerate((0.2, 0.55, 0.7, 0.9, 1.0)):
        cut = int(share * 300)
        held_out.append(f"{train[i][:cut]}{prose(300 - cut)}")
    held_out += [train[9].upper().replace(" ", "\n  "), "too short", "ü" * 40, train[20][: WINDOW + 1]]
    expected = by_definition(train, held_out)
    assert near_duplicates(train, held_out) == expected
    assert expected == (5, 18)
    assert near_duplicates(train, ["short"]) == near_duplicates([], []) == (0, 0)
    assert near_duplicates([], held_out) == (0, 18)


def test_a_long_text_is_several_passages():
    text = prose(10 * PASSAGE)
    assert near_duplicates([text[: 5 * PASSAGE]], [text]) == (5, 10)
    assert near_duplicates([text] * 3, [text]) == (10, 10)


def jsonl(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("objective", ["completion", "label"])
def test_examples_in_two_splits_are_logged(tmp_path, caplog, objective):
    def records(texts):
        fields = ("prompt", "completion") if objective == "completion" else ("text", "label")
        return [dict(zip(fields, (text, str(i % 2)), strict=True)) for i, text in enumerate(texts)]

    texts = [prose() for _ in range(COUNT)]
    corpus = jsonl(tmp_path / "train.jsonl", records(texts))
    shared = jsonl(tmp_path / "shared.jsonl", records([*texts[:2], *[prose() for _ in range(6)]]))
    apart = jsonl(tmp_path / "apart.jsonl", records([prose() for _ in range(8)]))
    open_examples(DataConfig(corpus=corpus, validation=shared), objective)
    line = logged(caplog)
    assert "2 of 8 validation texts are training texts too" in line
    assert "2 of 8 validation passages (25.0 %) are near-duplicates" in line
    open_examples(DataConfig(corpus=corpus, validation=apart, test=shared), objective)
    assert "2 of 8 test texts are training texts too" in logged(caplog)
    open_examples(DataConfig(corpus=corpus, validation=apart, test=apart), objective)
    assert "8 of 8 test texts are validation texts too" in logged(caplog)
    open_examples(DataConfig(corpus=corpus, validation=apart), objective)
    assert not logged(caplog)
    with pytest.raises(UsageError, match=r"every text of data\.validation is a training text"):
        open_examples(DataConfig(corpus=corpus, validation=corpus), objective)
    with pytest.raises(UsageError, match=r"every text of data\.test is a training text"):
        open_examples(DataConfig(corpus=corpus, validation=apart, test=corpus), objective)


def test_one_text_with_two_labels_may_lie_in_two_splits(tmp_path, caplog):
    texts = [prose() for _ in range(100)]
    corpus = jsonl(tmp_path / "a.jsonl", [{"text": t, "label": label} for t in texts for label in "ab"])
    made = open_examples(DataConfig(corpus=corpus, validation_fraction=0.3), "label")
    train, validation = ({e.parts[0].text for e in made.splits[split]} for split in ("train", "validation"))
    shared = sum(e.parts[0].text in train for e in made.splits["validation"])
    assert f"{shared} of {len(made.splits['validation'])} validation texts" in logged(caplog)
    assert len(validation) > shared > 10


def test_pairs_in_two_splits_are_logged(tmp_path, caplog):
    rows = [f"eins {i}\tone {i}" for i in range(COUNT)]
    train, shared = tmp_path / "train.tsv", tmp_path / "shared.tsv"
    train.write_text("\n".join([*rows, ""]))
    shared.write_text("\n".join([*rows[:3], "neu\tnew", "", ""]))
    open_parallel(DataConfig(corpus=str(train), validation=str(shared)))
    assert logged(caplog) == f"splits of {train}: 3 of 4 validation texts are training texts too"
    with pytest.raises(UsageError, match=r"every text of data\.validation"):
        open_parallel(DataConfig(corpus=str(train), validation=str(train)))
    open_parallel(DataConfig(corpus=str(train)))
    assert not logged(caplog)


def test_near_duplicates_of_plain_text_are_logged(tmp_path, caplog):
    text = prose(20 * PASSAGE)
    (tmp_path / "once.txt").write_text(text)
    (tmp_path / "twice.txt").write_text(f"{text} {text}")
    open_corpus(DataConfig(corpus=str(tmp_path / "once.txt")))
    assert not logged(caplog)
    open_corpus(DataConfig(corpus=str(tmp_path / "twice.txt"), validation_fraction=0.1, test_fraction=0.1))
    line = logged(caplog)
    assert "4 of 4 validation passages (100.0 %) are near-duplicates" in line
    assert "4 of 4 test passages (100.0 %) are near-duplicates" in line
    letters = [f"Dear {i},\n{text[:900]}" for i in range(200)]
    path = jsonl(tmp_path / "letters.jsonl", [{"text": letter} for letter in letters])
    corpus = open_corpus(DataConfig(corpus=path))
    number = len(corpus.splits["validation"])
    assert f"{number} of {number} validation passages (100.0 %)" in logged(caplog)


def test_training_text_is_hashed_in_blocks_of_bounded_size(monkeypatch):
    """Short texts are joined and a long one is cut, without changing the result."""
    texts = [prose() for _ in range(60)]
    sizes, hashes = [], overlap._hashes

    def recording(text):
        sizes.append(len(text))
        return hashes(text)

    monkeypatch.setattr(overlap, "BLOCK", 2000)
    monkeypatch.setattr(overlap, "_hashes", recording)
    assert near_duplicates([*texts, "a b " * 2500], texts[:10]) == (10, 10)
    blocks = sizes[10:]
    assert max(blocks) < 2 * 2000
    assert sum(blocks) >= 300 * 60 + 10_000 - 20
    assert len(blocks) <= 2 + sum(blocks) // 2000


def test_a_large_split_is_read_evenly(monkeypatch, caplog):
    """Each text is cut to its share of the limit; the log line counts only what was read."""
    monkeypatch.setattr(overlap, "MOST_TEXTS", 5)
    monkeypatch.setattr(overlap, "MOST_HELD_OUT", 500)
    read = []

    def text(value):
        read.append(value)
        return value

    splits = {"train": [prose() for _ in range(3)], "validation": [prose() for _ in range(20)], "test": []}
    overlap.log_findings("c", overlap.find_overlap(splits | {"train": splits["validation"]}, text))
    assert [value for value in read if value in splits["validation"]][:5] == splits["validation"][::4]
    assert "5 of 5 validation passages (100.0 %) are near-duplicates" in logged(caplog)
    assert [len(part) for part in overlap._spread(splits["validation"], str, 500)] == [100] * 5
