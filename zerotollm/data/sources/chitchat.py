"""Small talk from the `chitchat-dataset` package (MIT): 7,168 conversations of two people, recorded in 2018.

Consecutive utterances of one speaker form a turn; the first speaker is the user. A conversation is cut into
pieces that begin with the user and end with an answer.
"""

import json
from collections.abc import Iterator

from zerotollm.data.sources.packaged import Package

NAME = "chitchat"
PACKAGE = Package("chitchat_dataset", "pip install chitchat-dataset==0.9.0")
MOST_CHARACTERS = 400  # of a piece: about 160 tokens with a vocabulary of 4,096

Piece = list[dict[str, str]]  # messages of {"role", "content"}


def read_conversations() -> dict[str, list[Piece]]:
    """Return {name of a conversation: its pieces}, without turns longer than a piece. May raise UsageError."""
    PACKAGE.check_installed(NAME)
    conversations = json.loads((PACKAGE.folder / "dataset.json").read_text("utf-8"))
    pieces = {name: list(_pieces(_turns(value["messages"]))) for name, value in conversations.items()}
    return {name: value for name, value in pieces.items() if value}


def _turns(messages: list[list[dict[str, str]]]) -> list[str]:
    """Return the alternating turns of two speakers, up to where a third one speaks."""
    turns: list[str] = []
    senders: list[str] = []
    for utterances in messages:
        text = " ".join(" ".join(utterance["text"] for utterance in utterances).split())
        sender = utterances[0]["sender"]
        if not text:
            continue
        if senders and senders[-1] == sender:
            turns[-1] += f" {text}"
            continue
        if sender not in senders and len(set(senders)) == 2:
            break
        turns.append(text)
        senders.append(sender)
    return turns


def _pieces(turns: list[str]) -> Iterator[Piece]:
    piece: Piece = []
    size = 0
    for question, answer in zip(turns[::2], turns[1::2], strict=False):
        length = len(question) + len(answer)
        if piece and size + length > MOST_CHARACTERS:
            yield piece
            piece, size = [], 0
        if length <= MOST_CHARACTERS:
            piece += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            size += length
    if piece:
        yield piece
