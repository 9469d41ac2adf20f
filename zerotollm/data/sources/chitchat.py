"""Small talk out of the `chitchat-dataset` package (MIT): 7,168 conversations of two people, in 2018.

The package is found and read, never imported. What somebody wrote in a row is one turn; who began is the user. A
conversation is cut into pieces that begin with the user and end with an answer.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from zerotollm.errors import UsageError

NAME = "chitchat"
"""The corpus that is written so."""
PACKAGE = "chitchat_dataset"
INSTALL = "pip install chitchat-dataset==0.9.0"
MOST_CHARACTERS = 400
"""Of a piece: some 160 tokens of a vocabulary of 4,096 that was learned from another text."""


def read_conversations() -> dict[str, list[list[dict[str, str]]]]:
    """{name of a conversation: its pieces, each a list of messages}, where it leaves any, in the order of the file.

    Turns that are longer than a piece, and what stands with them, are left out. Raises UsageError where the package is
    missing.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"chitchat is in a package that is not installed: {INSTALL}")
    path = Path(found.submodule_search_locations[0], "dataset.json")
    conversations = json.loads(path.read_text("utf-8"))
    pieces = {name: list(_pieces(_turns(held["messages"]))) for name, held in conversations.items()}
    return {name: held for name, held in pieces.items() if held}


def name_hash(name: str) -> int:
    """Which split a conversation is in follows from this number below 2^64: its pieces are never in two."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def _turns(messages: list[list[dict[str, str]]]) -> list[str]:
    """What each of the two said, in turn; nothing from where a third one speaks."""
    turns, senders = [], []
    for utterances in messages:
        said = [utterance["text"].strip() for utterance in utterances]
        text, sender = " ".join(" ".join(filter(None, said)).split()), utterances[0]["sender"]
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


def _pieces(turns: list[str]) -> Iterator[list[dict[str, str]]]:
    piece, size = [], 0
    for said, answer in zip(turns[::2], turns[1::2], strict=False):
        length = len(said) + len(answer)
        if piece and (size + length > MOST_CHARACTERS):
            yield piece
            piece, size = [], 0
        if length <= MOST_CHARACTERS:
            piece += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
            size += length
    if piece:
        yield piece
