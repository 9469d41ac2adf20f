"""Merges done again are SentencePiece's own, and counts are counts."""

import numpy as np
import pytest

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokenizer import SPACE, train_tokenizer
from zerotollm.explain.merges import count_words, merge_order, replay, steps_of
from zerotollm.explain.tokenization import compare_tokenizers, explain_tokens, zipf_slope
from zerotollm.explain.words import KINDS, kinds_of, sentence_ends, token_counts


@pytest.fixture(scope="module")
def merges(tokenizer, text):
    return replay(tokenizer, count_words(text))


def test_the_merges_end_in_sentencepieces_own_encoding(tokenizer, merges, text):
    rank = merges.rank
    for word in count_words(text):
        pieces = list(word)
        for step in steps_of(word, rank):
            i = next(i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) == step[:2])
            pieces[i : i + 2] = [step.left + step.right]
        ids = tokenizer.encode(word.replace(SPACE, " "))
        assert pieces == [tokenizer.piece(int(i)) for i in ids]
    assert merges.tokens_R[-1] == len(tokenizer.encode(text))


def test_the_first_merge_is_the_most_frequent_pair_of_characters(merges, text):
    spelled = text.replace(" ", SPACE)
    pairs = [spelled[i : i + 2] for i in range(len(spelled) - 1) if spelled[i + 1] != SPACE]
    assert merges.count_R[0] == max(map(pairs.count, set(pairs)))
    assert merges.left[0] + merges.right[0] == merges.pieces[0]
    assert (np.diff([merges.tokens_before, *merges.tokens_R]) <= 0).all()
    assert merges.tokens_before - merges.tokens_R[0] == merges.count_R[0]


def test_the_answer_counts(tokenizer, tokens, text):
    counts_V = token_counts(tokens, tokenizer.vocab_size)
    found = explain_tokens(tokenizer, "And Jordan 🦔", words=count_words(text), counts_V=counts_V)
    assert "".join(p.text for p in found.pieces).startswith("And Jordan")
    first = found.pieces[0]
    assert first.count == list(tokens).count(first.id)
    assert "by frequency" in found.sentence()
    assert "'🦔'" in found.sentence()
    assert found.strangers[-1].bytes_of_it == 4
    assert found.compression_R[-1] == pytest.approx(len(text.encode()) / len(tokenizer.encode(text)))
    assert found.vocabulary_R[-1] == tokenizer.vocab_size


def test_without_counts_nothing_is_said_of_frequency(tokenizer):
    found = explain_tokens(tokenizer, "Jordan", strangers=())
    assert "frequency" not in found.sentence()
    assert "nobody counted" in found.sentence()
    assert found.pieces[0].count == -1


def test_tokenizers_without_merges_say_so(text):
    char = train_tokenizer(TokenizerConfig("char"), [text])
    assert merge_order(char) == ()
    assert "no merges" in explain_tokens(char, "Jordan").sentence()


def test_side_by_side(text):
    kinds = {"bpe": TokenizerConfig("bpe", 380), "char": TokenizerConfig("char")}
    found = compare_tokenizers("the king", text[:500], text, kinds)
    assert found.bytes_per_token_Y[1] == pytest.approx(1)
    assert found.bytes_per_token_Y[0] > 2
    assert list(found.cuts[1]) == list("the king")
    assert "bpe" in found.sentence().split(":")[1].split(",")[0]


def test_a_known_power_law_is_found():
    law = zipf_slope((1e7 / np.arange(1, 3000) ** 1.2).astype(int))
    assert law.value == pytest.approx(-1.2, abs=0.01)
    assert law.high - law.low < 0.02


def test_kinds_and_sentence_ends(tokenizer):
    kinds_V, ends_V = kinds_of(tokenizer), sentence_ends(tokenizer)
    by_piece = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    assert KINDS[kinds_V[by_piece[SPACE + "the"]]] == "word"
    assert KINDS[kinds_V[by_piece["<0x41>"]]] == "byte"
    assert KINDS[kinds_V[by_piece["."]]] == "punctuation"
    assert KINDS[kinds_V[1]] == "special"
    assert ends_V[by_piece["."]]
    assert ends_V[tokenizer.bos_id]
    assert not ends_V[by_piece[SPACE + "the"]]
