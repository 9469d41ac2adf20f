"""The prompt that a finished run suggests is of its own data."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from zerotollm.experiment import Experiment
from zerotollm.session.summary import commands, held_out_words


def feed_of(text: str) -> SimpleNamespace:
    """A feed whose tokens are characters, and bos a character of its own."""
    ids_T = np.array([1 if character == "^" else ord(character) for character in text], np.int32)
    decode = lambda ids: "".join(chr(i) for i in ids if i != 1)  # noqa: E731
    tokenizer = SimpleNamespace(bos_id=1, decode=decode)
    return SimpleNamespace(tokenizer=tokenizer, evaluation=lambda split: [{"inputs": ids_T[None]}])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("^Once upon a time there was a fox.^Two", "Once upon a time there"),
        ("^the end of a sentence. Then it rained on", "Then it rained on"),
        ("^no sentence ends here", "no sentence ends here"),
        ("^^A short text^", "A short text"),
        ("^" + "x" * 100, "x" * 60),
        ("^", ""),
    ],
)
def test_the_words_are_the_first_of_a_held_out_text(text, words):
    own = Experiment()
    own = replace(own, data=replace(own.data, corpus="notes"))
    assert held_out_words(own, feed_of(text)) == words
    assert held_out_words(Experiment(), feed_of(text)) == "", "a Bible has the default prompt"
    suggested = dict(commands(own, Path("runs/mine"), words))
    assert f'--prompt "{words or "In the beginning"}"' in suggested["let it write"].replace("'", '"') or (
        len(words.split()) == 1
    )
