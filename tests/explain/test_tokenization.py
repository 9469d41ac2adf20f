"""Merges done again are SentencePiece's own, and counts are counts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.pretrained import pretrained_tokenizer
from zerotollm.data.tokens.sentencepiece import SPACE, train_tokenizer
from zerotollm.explain.embeddings import explain_embeddings
from zerotollm.explain.merges import count_words, merge_order, remembered, replay, steps_of
from zerotollm.explain.statistics import Estimate
from zerotollm.explain.tokenization import compare_tokenizers, explain_tokens, zipf_slope
from zerotollm.explain.words import KINDS, kind_of, kinds_of, sentence_ends, token_counts


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


def test_how_often_a_text_was_seen_is_counted(tokenizer, text):
    found = explain_tokens(tokenizer, "Jordan", strangers=("Jordan", "unflabberable"), training=text)
    assert [stranger.count for stranger in found.strangers] == [text.count("Jordan"), 0]
    assert text.count("Jordan") > 5
    assert [s.count for s in explain_tokens(tokenizer, "Jordan").strangers] == [-1] * 4


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (Estimate(-0.97, -0.98, -0.96), "almost exactly in the order"),
        (Estimate(-0.4, -0.6, -0.1), "frequent pairs were merged before rarer ones"),
        (Estimate(0.4, 0.1, 0.6), "against the order of their counts"),
        (Estimate(-0.1, -0.4, 0.3), "that merges follow the counts is not shown"),
    ],
)
def test_whether_merges_follow_counts_is_told_from_the_interval(tokenizer, text, order, said):
    found = explain_tokens(tokenizer, "Jordan", words=count_words(text))
    assert said in replace(found, order=order).sentence()


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


def test_a_tokenizer_that_came_with_a_model_is_explained_too():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {c: i for i, c in enumerate([*letters, "Ġk", "in", "g!"])} | {"<|end|>": 259}
    other = Tokenizer(models.BPE(vocab=known, merges=[("Ġ", "k"), ("i", "n"), ("g", "!")]))
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.decoder = decoders.ByteLevel()
    other.add_special_tokens(["<|end|>"])
    made = pretrained_tokenizer(
        json.loads(other.to_str()), bos_id=None, eos_id=259, pad_id=None, source="the test"
    )
    found = explain_tokens(made, "a king! 語")
    assert [piece.text for piece in found.pieces[:4]] == ["a", " k", "in", "g!"]
    assert found.pieces[-1].text == "<0x9E>"
    assert kind_of(made, 259) == "special"
    assert kind_of(made, known["Ġk"]) == "word"
    assert "came with the model" in found.sentence()
    assert "'語'" in found.sentence().partition("fell back")[0]
    assert explain_embeddings(np.eye(260, 8), made, ids=[known["in"]]).neighbours[0].piece == "in"
    assert found.show().panels == ()


def test_merges_are_counted_once_and_kept(tokenizer, tokens, merges, tmp_path, monkeypatch):
    first = remembered(tmp_path, tokenizer, tokens)
    monkeypatch.setattr("zerotollm.explain.merges.replay", None)
    again = remembered(tmp_path, tokenizer, tokens)
    for found in (first, again):
        assert (found.pieces, found.left, found.right) == (merges.pieces, merges.left, merges.right)
        np.testing.assert_array_equal(found.count_R, merges.count_R)
    with pytest.raises(TypeError):  # another text is another count
        remembered(tmp_path, tokenizer, tokens[:-1])
