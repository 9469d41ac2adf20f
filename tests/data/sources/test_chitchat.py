"""Small talk: turns, pieces and splits."""

import pytest

from zerotollm.data.config import DataConfig
from zerotollm.data.sources import chitchat
from zerotollm.data.sources.examples import open_examples
from zerotollm.errors import UsageError


def said(*turns: tuple[str, str]) -> list:
    return [[{"sender": sender, "text": text}] for sender, text in turns]


def test_utterances_in_a_row_are_one_turn_and_a_third_speaker_ends_the_conversation():
    messages = [
        [{"sender": "a", "text": " Hi\n there "}, {"sender": "a", "text": "you"}],
        *said(("b", "Hello"), ("b", "friend"), ("a", ""), ("a", "Bye"), ("c", "What?"), ("a", "no")),
    ]
    assert chitchat._turns(messages) == ["Hi there you", "Hello friend", "Bye"]


def test_pieces_begin_with_the_user_end_with_an_answer_and_are_short():
    long = "x" * (chitchat.MOST_CHARACTERS - 10)
    turns = ["a", "b", long, "c", "d", long + long, "e", "f", "left over"]
    pieces = list(chitchat._pieces(turns))
    assert [[m["content"] for m in piece] for piece in pieces] == [["a", "b", long, "c"], ["e", "f"]]
    assert all([m["role"] for m in piece] == ["user", "assistant"] * (len(piece) // 2) for piece in pieces)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(chitchat, "PACKAGE", chitchat.PACKAGE._replace(module="no_such_package"))
    with pytest.raises(UsageError, match="pip install chitchat-dataset"):
        chitchat.read_conversations()


def test_the_real_conversations_are_split_whole():
    pytest.importorskip("chitchat_dataset", reason=f"optional: {chitchat.PACKAGE.install}")
    made = open_examples(DataConfig(corpus="chitchat"), "completion")
    names = {s: {e.id.partition(",")[0] for e in examples} for s, examples in made.splits.items()}
    assert sum(map(len, names.values())) == len(set().union(*names.values()))
    assert {s: len(examples) for s, examples in made.splits.items()} == {
        "train": 28_881, "validation": 1_786, "test": 1_481,
    }  # fmt: skip
    assert all(any(part.learned for part in e.parts) for e in made.splits["test"])
