"""A tiny tokenizer and a randomly initialized model."""

import jax
import numpy as np
import pytest

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.transformer import Transformer

NAMES = ["Abia", "Melchi", "Jordan", "Zedek", "Tharah"]
PLACES = ["sea", "mountain", "river", "city"]
TEXT = "".join(
    f"And {NAMES[i % 5]} went to the {PLACES[i % 4]}, {who} said, "
    f"The {what} of {NAMES[(i * 7) % 5]} is in the {PLACES[i % 3]}. "
    for i, (who, what) in enumerate(
        (who, what)
        for who in ["and he", "and she", "who"]
        for what in ["king", "queen", "daughter", "house", "servant"] * 8
    )
)
CONTEXT = 32
"""All tests use this length, so programs are compiled once."""


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TokenizerConfig("bpe", 380), [TEXT])


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT


@pytest.fixture(scope="session")
def tokens(tokenizer):
    return np.concatenate([[tokenizer.bos_id], tokenizer.encode(TEXT)])


@pytest.fixture(scope="session")
def model(tokenizer):
    config = TransformerConfig(num_layers=2, width=32, num_heads=2)
    return resolve(config, vocab_size=tokenizer.vocab_size, context=CONTEXT)


@pytest.fixture(scope="session")
def params(model):
    return jax.jit(
        lambda: Transformer(model).init(jax.random.key(0), {"inputs": np.zeros((1, 4), np.int32)})
    )()["params"]
