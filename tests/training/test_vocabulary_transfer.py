"""A pretrained model for another tokenizer: which row each token has."""

import numpy as np
import pytest

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import Tokenizer, train_tokenizer
from zerotollm.training.vocabulary_transfer import token_parts, transfer_vocabulary

OLD = ["In the beginning God created the heavens and the earth.\n"] * 20
NEW = ["In the bigynnyng God made of nouyt heuene and erthe.\n"] * 20


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Tokenizer, Tokenizer]:
    config = TokenizerConfig(kind="bpe", vocab_size=300)
    return train_tokenizer(config, OLD), train_tokenizer(config, NEW)


def test_the_same_tokenizer_changes_nothing(tokenizers):
    old, _ = tokenizers
    V, D = old.vocab_size + 20, 4
    draw = np.random.default_rng(0)
    params = {"embedding": draw.normal(size=(V, D)), "head": draw.normal(size=(D, V)), "layer_0": {}}
    same = transfer_vocabulary(params, old, old, V)
    assert same.keys() == params.keys()
    np.testing.assert_allclose(same["embedding"][: old.vocab_size], params["embedding"][: old.vocab_size])
    np.testing.assert_allclose(same["head"][:, : old.vocab_size], params["head"][:, : old.vocab_size])
    assert same["embedding"].shape == (V, D)


def test_a_token_has_the_row_of_the_same_bytes_or_the_mean_of_its_parts(tokenizers):
    old, new = tokenizers
    rows_V1 = np.arange(old.vocab_size, dtype=np.float64)[:, None]
    moved_V1 = transfer_vocabulary({"embedding": rows_V1}, old, new, new.vocab_size)["embedding"]
    parts = token_parts(old, new)
    assert [parts[i] for i in range(4)] == [[0], [1], [2], [3]]  # special tokens
    assert [parts[i] for i in range(4, 260)] == [[i] for i in range(4, 260)]  # bytes
    shared = split = 0
    for token in range(260, new.vocab_size):
        assert b"".join(old.token_bytes(part) for part in parts[token]) == new.token_bytes(token)
        assert moved_V1[token, 0] == pytest.approx(np.mean(parts[token]))
        shared += len(parts[token]) == 1
        split += len(parts[token]) > 1
    assert shared > 0 < split


def test_what_the_old_tokenizer_cannot_spell_is_its_unknown_token(tokenizers):
    _, new = tokenizers
    letters = train_tokenizer(TokenizerConfig(kind="char", vocab_size=30, byte_fallback=False), OLD)
    parts = token_parts(letters, new)
    assert parts[4 + 0xE2] == [letters.unk_id]
    assert all(parts)
