"""Sources that the context holds are read whole, and no other is cut in silence."""

from dataclasses import replace

import pytest

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokenizer import train_tokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import sample_text
from zerotollm.decoding.translate import translate_texts
from zerotollm.errors import UsageError
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training.step import init_params

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


def test_a_source_that_fits_is_read_and_a_longer_one_refused(small):
    params, model = small
    room = ROOM[model.architecture]
    fits, longer = "abcdefgh" * 3, "abcdefgh" * 4
    fits = fits[:room]
    assert len(translate_texts(params, model, TOKENIZER, [fits], SAMPLING)) == 1
    with pytest.raises(
        UsageError, match=f"is {room + 2} tokens long and the context of this model holds {room + 1}"
    ):
        translate_texts(params, model, TOKENIZER, [longer[: room + 1]], SAMPLING)
    with pytest.raises(UsageError, match="the text to translate number 2 is 33 tokens long"):
        translate_texts(params, model, TOKENIZER, [fits, longer], SAMPLING)


def test_what_is_cut_is_told_and_is_the_end(small):
    params, model = small
    room, told = ROOM[model.architecture], []
    longer = "abcdefgh" * 4
    texts = [longer, "abc", longer[: room + 1]]
    found = translate_texts(
        params, model, TOKENIZER, texts, SAMPLING, cut=lambda texts, tokens: told.append((texts, tokens))
    )
    assert told == [(2, len(longer) - room + 1)]
    whole = translate_texts(params, model, TOKENIZER, [longer[:room]], SAMPLING)
    assert found[0][0].text == found[2][0].text == whole[0][0].text
    translate_texts(params, model, TOKENIZER, ["abc"], SAMPLING, cut=lambda *numbers: pytest.fail("cut"))


def test_a_decoder_translates_where_the_context_is_shorter_than_max_tokens(small):
    params, model = small
    if model.architecture != "decoder":
        pytest.skip("of decoders")
    many = replace(SAMPLING, max_tokens=100)
    for source in ("a", "abcde", "abcdefghi"):
        (found,), (few,) = (
            translate_texts(params, model, TOKENIZER, [source], sampling)
            for sampling in (many, replace(SAMPLING, max_tokens=10))
        )
        assert found[0].text.startswith(few[0].text)
        assert len(TOKENIZER.encode(found[0].text)) <= CONTEXT + 1 - (len(source) + 3)


def test_a_long_prompt_costs_no_training(small):
    params, model = small
    sampling = replace(SAMPLING, prompt="abcdefgh" * 4)
    for translates in (True, False):
        text = sample_text(params, model, TOKENIZER, sampling, translates=translates)
        assert text.startswith("no sample: the ")
        assert "shorten it" in text
