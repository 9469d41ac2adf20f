"""Replayed merges are SentencePiece's own, and counts in the training text are exact."""

import json
from dataclasses import replace

import numpy as np
import pytest

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.pretrained import pretrained_tokenizer
from zerotollm.data.tokens.sentencepiece import SPACE, train_tokenizer
from zerotollm.explain.embeddings import explain_embeddings
from zerotollm.explain.estimates import Estimate
from zerotollm.explain.merges import cached_merges, count_words, merge_order, replay_merges, word_merges
from zerotollm.explain.tokenization import compare_tokenizers, explain_tokens, zipf_slope
from zerotollm.explain.words import KINDS, sentence_ends, token_counts, token_kind, token_kinds


@pytest.fixture(scope="module")
def merges(tokenizer, text):
    return replay_merges(tokenizer, count_words(text))


def test_merges_end_in_sentencepieces_own_encoding(tokenizer, merges, text):
    rank = {piece: r for r, piece in enumerate(merge_order(tokenizer))}
    for word in count_words(text):
        pieces = list(word)
        for step in word_merges(word, rank):
            i = next(
                i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) == (step.left, step.right)
            )
            pieces[i : i + 2] = [step.left + step.right]
        ids = tokenizer.encode(word.replace(SPACE, " "))
        assert pieces == [tokenizer.piece(int(i)) for i in ids]
    assert merges.tokens_R[-1] == len(tokenizer.encode(text))


def test_first_merge_is_the_most_frequent_pair_of_characters(merges, text):
    spelled = text.replace(" ", SPACE)
    pairs = [spelled[i : i + 2] for i in range(len(spelled) - 1) if spelled[i + 1] != SPACE]
    assert merges.count_R[0] == max(map(pairs.count, set(pairs)))
    assert (np.diff([len(text), *merges.tokens_R]) <= 0).all()
    assert len(text) - merges.tokens_R[0] == merges.count_R[0]


def test_answer_counts_tokens_and_merges(tokenizer, tokens, text, merges):
    counts_V = token_counts(tokens, tokenizer.vocab_size)
    answer = explain_tokens(tokenizer, "And Jordan 🦔", merges=merges, counts_V=counts_V)
    assert "".join(p.text for p in answer.pieces).startswith("And Jordan")
    first = answer.pieces[0]
    assert first.count == list(tokens).count(first.id)
    assert "by frequency" in answer.sentence()
    assert "'🦔'" in answer.sentence()
    assert answer.strangers[-1].bytes_of_it == 4
    assert answer.compression_R[-1] == pytest.approx(len(text.encode()) / len(tokenizer.encode(text)))
    assert answer.vocabulary_R[-1] == tokenizer.vocab_size


def test_strangers_are_counted_in_the_training_text(tokenizer, text):
    answer = explain_tokens(tokenizer, "Jordan", strangers=("Jordan", "unflabberable"), training=text)
    assert [stranger.count for stranger in answer.strangers] == [text.count("Jordan"), 0]
    assert text.count("Jordan") > 5
    assert [s.count for s in explain_tokens(tokenizer, "Jordan").strangers] == [-1] * 4


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (Estimate(-0.97, -0.98, -0.96), "almost exactly in the order"),
        (Estimate(-0.4, -0.6, -0.1), "frequent pairs were merged before rarer ones"),
        (Estimate(0.4, 0.1, 0.6), "against the order of their counts"),
        (Estimate(-0.1, -0.4, 0.3), "that merges follow the counts is not shown"),
    ],
)
def test_interval_decides_whether_merges_follow_counts(tokenizer, merges, order, words):
    answer = explain_tokens(tokenizer, "Jordan", merges=merges)
    assert words in replace(answer, order=order).sentence()


def test_sentence_without_counts_does_not_mention_frequency(tokenizer):
    answer = explain_tokens(tokenizer, "Jordan", strangers=())
    assert "frequency" not in answer.sentence()
    assert "not counted" in answer.sentence()
    assert answer.pieces[0].count == -1


def test_char_tokenizer_has_no_merges(text):
    char = train_tokenizer(TokenizerConfig("char"), [text])
    assert merge_order(char) == ()
    assert "no merges" in explain_tokens(char, "Jordan").sentence()


def test_tokenizers_are_compared(text):
    configs = {"bpe": TokenizerConfig("bpe", 380), "char": TokenizerConfig("char")}
    answer = compare_tokenizers("the king", text[:500], text, configs)
    assert answer.bytes_per_token_Y[1] == pytest.approx(1)
    assert answer.bytes_per_token_Y[0] > 2
    assert list(answer.cuts[1]) == list("the king")
    assert "bpe" in answer.sentence().split(":")[1].split(",")[0]


def test_slope_of_a_known_power_law():
    slope = zipf_slope((1e7 / np.arange(1, 3000) ** 1.2).astype(int))
    assert slope.value == pytest.approx(-1.2, abs=0.01)
    assert slope.high - slope.low < 0.02


def test_kinds_and_sentence_ends(tokenizer):
    kinds_V, ends_V = token_kinds(tokenizer), sentence_ends(tokenizer)
    by_piece = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    assert KINDS[kinds_V[by_piece[SPACE + "the"]]] == "word"
    assert KINDS[kinds_V[by_piece["<0x41>"]]] == "byte"
    assert KINDS[kinds_V[by_piece["."]]] == "punctuation"
    assert KINDS[kinds_V[1]] == "special"
    assert ends_V[by_piece["."]]
    assert ends_V[tokenizer.bos_id]
    assert not ends_V[by_piece[SPACE + "the"]]


def test_pretrained_tokenizer_is_explained_too():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*letters, "Ġk", "in", "g!"])} | {"<|end|>": 259}
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "k"), ("i", "n"), ("g", "!")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|end|>"])
    tokenizer = pretrained_tokenizer(
        json.loads(library.to_str()), bos_id=None, eos_id=259, pad_id=None, source="the test"
    )
    answer = explain_tokens(tokenizer, "a king! 語")
    assert [piece.text for piece in answer.pieces[:4]] == ["a", " k", "in", "g!"]
    assert answer.pieces[-1].text == "<0x9E>"
    assert token_kind(tokenizer, 259) == "special"
    assert token_kind(tokenizer, vocabulary["Ġk"]) == "word"
    assert "came with the model" in answer.sentence()
    assert "'語'" in answer.sentence().partition("fell back")[0]
    embeddings = explain_embeddings(np.eye(260, 8), tokenizer, ids=[vocabulary["in"]])
    assert embeddings.neighbours[0].piece == "in"
    assert answer.show().panels == ()


def test_merges_are_counted_once_and_cached(tokenizer, tokens, merges, tmp_path, monkeypatch):
    first = cached_merges(tmp_path, tokenizer, tokens)
    monkeypatch.setattr("zerotollm.explain.merges.replay_merges", None)
    for cached in (first, cached_merges(tmp_path, tokenizer, tokens)):
        assert cached.num_bytes == merges.num_bytes
        np.testing.assert_array_equal(cached.count_R, merges.count_R)
        np.testing.assert_array_equal(cached.tokens_R, merges.tokens_R)
    with pytest.raises(TypeError):  # another text is counted again
        cached_merges(tmp_path, tokenizer, tokens[:-1])
