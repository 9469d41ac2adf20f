"""Sources that the context holds are read whole, and no other is cut in silence."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functions import init_params
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.decoding import translate
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import sample_text
from zerotollm.decoding.translate import translate_texts
from zerotollm.errors import UsageError
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, resolve

CONTEXT = 24
TOKENIZER = train_tokenizer(TokenizerConfig("char", 40, byte_fallback=False), ["abcdefgh ijkl\n"] * 20)
SAMPLING = SamplingConfig(max_tokens=8, beam_size=2)
ROOM = {"encoder-decoder": CONTEXT - 1 - 1, "decoder": CONTEXT - 8 - 2 - 1}
"""Characters of a source, which a space begins: with what ends it, and of a decoder also bos and the translation."""


@pytest.fixture(scope="module", params=["encoder-decoder", "decoder"])
def small(request):
    config = TransformerConfig(architecture=request.param, num_layers=1, width=16, num_heads=2)
    model = resolve(config, vocab_size=TOKENIZER.vocab_size, context=CONTEXT)
    params = init_params(model, 0)
    return params, model


def test_a_source_that_fits_is_accepted_and_a_longer_one_refused(small):
    params, model = small
    room = ROOM[model.architecture]
    fits, longer = "abcdefgh" * 3, "abcdefgh" * 4
    fits = fits[:room]
    assert len(translate_texts(params, build_net(model), TOKENIZER, [fits], SAMPLING)) == 1
    with pytest.raises(
        UsageError, match=f"is {room + 2} tokens long and the context of this model holds {room + 1}"
    ):
        translate_texts(params, build_net(model), TOKENIZER, [longer[: room + 1]], SAMPLING)
    with pytest.raises(UsageError, match="the text to translate number 2 is 33 tokens long"):
        translate_texts(params, build_net(model), TOKENIZER, [fits, longer], SAMPLING)


def test_truncation_is_reported_and_drops_the_end(small):
    params, model = small
    room, told = ROOM[model.architecture], []
    longer = "abcdefgh" * 4
    texts = [longer, "abc", longer[: room + 1]]
    found = translate_texts(
        params,
        build_net(model),
        TOKENIZER,
        texts,
        SAMPLING,
        cut=lambda texts, tokens: told.append((texts, tokens)),
    )
    assert told == [(2, len(longer) - room + 1)]
    whole = translate_texts(params, build_net(model), TOKENIZER, [longer[:room]], SAMPLING)
    assert found[0][0].text == found[2][0].text == whole[0][0].text
    translate_texts(
        params, build_net(model), TOKENIZER, ["abc"], SAMPLING, cut=lambda *numbers: pytest.fail("cut")
    )


def test_a_decoder_translates_where_the_context_is_shorter_than_max_tokens(small):
    params, model = small
    if model.architecture != "decoder":
        pytest.skip("of decoders")
    many = replace(SAMPLING, max_tokens=100)
    for source in ("a", "abcde", "abcdefghi"):
        (found,), (few,) = (
            translate_texts(params, build_net(model), TOKENIZER, [source], sampling)
            for sampling in (many, replace(SAMPLING, max_tokens=10))
        )
        assert found[0].text.startswith(few[0].text)
        assert len(TOKENIZER.encode(found[0].text)) <= CONTEXT + 1 - (len(source) + 3)


def test_each_text_has_its_own_translations_and_progress_is_reported(small):
    """Of many texts of many lengths: as of each alone."""
    params, model = small
    texts = [*["abcdefghi"[: 9 - n % 9] for n in range(11)], "a"]
    sampling = replace(SAMPLING, max_tokens=100 if model.architecture == "decoder" else 8, n_best=2)
    told = []
    together = translate_texts(params, build_net(model), TOKENIZER, texts, sampling, done=told.append)
    assert told[-1] == len(texts)
    assert told == sorted(set(told))
    for text, found in zip(texts, together, strict=True):
        (alone,) = translate_texts(params, build_net(model), TOKENIZER, [text], sampling)
        assert [t.text for t in found] == [t.text for t in alone]
        assert all(isinstance(t.text, str) and isinstance(t.score, float) for t in found)
        if model.architecture == "decoder":
            assert len(found) == 1
            assert math.isnan(found[0].score)
        else:
            assert len(found) == 2
            assert found[0].score >= found[1].score
            np.testing.assert_allclose([t.score for t in found], [t.score for t in alone], atol=1e-5)


def test_more_texts_than_a_batch_holds_are_translated_in_several(small, monkeypatch):
    params, model = small
    texts = ["abcde", "b", "hgf", "abcdefg", "c"]
    whole = translate_texts(params, build_net(model), TOKENIZER, texts, SAMPLING)
    monkeypatch.setattr(translate, "ROWS", 2)
    told = []
    found = translate_texts(params, build_net(model), TOKENIZER, texts, SAMPLING, done=told.append)
    assert [t[0].text for t in found] == [t[0].text for t in whole]
    assert told == [2, 4, 5]


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=150),
    beam=st.integers(1, 40),
    extra=st.integers(1, 300),
)
def test_batches_have_similar_lengths_and_fill_the_cache(lengths, beam, extra):
    groups = translate._groups(lengths, beam, extra)
    assert sorted(i for members, _, _ in groups for i in members) == list(range(len(lengths)))
    rows_of = {}
    for members, rows, width in groups:
        assert 0 < len(members) <= rows <= 64
        assert rows.bit_count() == 1
        assert rows == 1 or rows * beam * (width + extra) <= 32_768
        assert {-(-lengths[i] // 32) * 32 for i in members} == {width}
        assert [lengths[i] for i in members] == sorted(lengths[i] for i in members)
        rows_of.setdefault(width, set()).add(rows)
    for width, (rows,) in rows_of.items():
        texts = sum(len(members) for members, _, at in groups if at == width)
        assert rows < 2 * texts
        full = 2 * rows > 64 or 2 * rows * beam * (width + extra) > 32_768
        assert full or rows >= texts, "twice as many would have fitted"


def test_texts_that_cannot_be_translated_are_errors(small):
    params, model = small
    with pytest.raises(UsageError, match="text 2 is empty, there is nothing to translate"):
        translate_texts(params, build_net(model), TOKENIZER, ["abc", " "], SAMPLING)
    if model.architecture == "encoder-decoder":
        for n_best in (0, 3):
            with pytest.raises(UsageError, match=f"n_best is {n_best}: expected 1 to beam_size 2"):
                translate_texts(
                    params, build_net(model), TOKENIZER, ["abc"], replace(SAMPLING, n_best=n_best)
                )


def test_several_translations_are_lines_after_their_scores(small):
    params, model = small
    if model.architecture == "decoder":
        pytest.skip("it finds one")
    sampling = replace(SAMPLING, prompt="abc", n_best=2)
    (found,) = translate_texts(params, build_net(model), TOKENIZER, ["abc"], sampling)
    lines = translate.translate_text(params, build_net(model), TOKENIZER, sampling)
    assert lines == f"{found[0].score:.4f}\t{found[0].text}\n{found[1].score:.4f}\t{found[1].text}"
    assert (
        translate.translate_text(params, build_net(model), TOKENIZER, replace(sampling, n_best=1))
        == found[0].text
    )


def test_a_too_long_prompt_does_not_stop_training(small):
    params, model = small
    sampling = replace(SAMPLING, prompt="abcdefgh" * 4)
    for translates in (True, False):
        text = sample_text(params, build_net(model), TOKENIZER, sampling, translates=translates)
        assert text.startswith("no sample: the ")
        assert "shorten it" in text
