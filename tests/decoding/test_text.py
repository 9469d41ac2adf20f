"""Text in, text out: what is shown is the prompt and the drawn tokens' text, whole or piece by piece."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.functions import init_params
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.decoding import sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import encode_prompt, generate_texts, sample_text, stream_answer, stream_text
from zerotollm.decoding.translate import translate_text
from zerotollm.errors import UsageError
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, resolve

TOKENIZER = train_tokenizer(TokenizerConfig("bpe", 290), ["heaven earth light waters é 光\n"] * 60)
SAMPLING = SamplingConfig(prompt="light é", max_tokens=20, temperature=1.5, seed=3)


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def small(request):
    config = TransformerConfig(architecture=request.param, num_layers=1, width=16, num_heads=2)
    model = resolve(config, vocab_size=TOKENIZER.vocab_size, context=32)
    return init_params(model, 0), model, TOKENIZER


def test_a_prompt_starts_with_bos_and_a_too_long_one_is_refused():
    ids = encode_prompt(TOKENIZER, "light", 8)
    assert ids.tolist() == [TOKENIZER.bos_id, *TOKENIZER.encode("light")]
    assert encode_prompt(TOKENIZER, "light", len(ids)).tolist() == ids.tolist()
    with pytest.raises(UsageError, match=f"{len(ids) - 1} tokens long .* holds {len(ids) - 2}"):
        encode_prompt(TOKENIZER, "light", len(ids) - 1)


def test_texts_are_prompts_with_their_continuations(small):
    params, model, _ = small
    if model.architecture == "encoder-decoder":
        pytest.skip("an encoder-decoder translates")
    prompts = ["light", "é 光"]
    ids = [encode_prompt(TOKENIZER, prompt, 32) for prompt in prompts]
    drawn = sample.generate(
        params, build_net(model), ids, SAMPLING, stop_ids=TOKENIZER.stop_ids, utf8=TOKENIZER.utf8
    )
    expected = [
        prompt + TOKENIZER.decode(new, final=False) for prompt, new in zip(prompts, drawn, strict=True)
    ]
    assert generate_texts(params, build_net(model), TOKENIZER, prompts, SAMPLING) == expected
    alone = generate_texts(params, build_net(model), TOKENIZER, [SAMPLING.prompt], SAMPLING)[0]
    assert sample_text(params, build_net(model), TOKENIZER, SAMPLING) == alone
    assert sample_text(
        params, build_net(model), TOKENIZER, replace(SAMPLING, prompt="light " * 40)
    ).startswith("no sample: ")


def test_an_encoder_decoder_returns_its_translation(small):
    params, model, _ = small
    if model.architecture == "decoder":
        pytest.skip("a decoder continues")
    expected = translate_text(params, build_net(model), TOKENIZER, SAMPLING)
    assert sample_text(params, build_net(model), TOKENIZER, SAMPLING) == expected
    assert list(stream_text(params, build_net(model), TOKENIZER, SAMPLING)) == [expected]
    assert sample_text(params, build_net(model), TOKENIZER, replace(SAMPLING, prompt=" ")) == ""


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_pieces_concatenate_to_the_text_whatever_bytes_they_end_in(small, chunk):
    params, model, _ = small
    if model.architecture == "encoder-decoder":
        pytest.skip("its text is one piece")
    # A row of the head that always wins: half of a character, again and again.
    half = next(i for i in range(TOKENIZER.vocab_size) if TOKENIZER.token_bytes(i) == "é".encode()[:1])
    params = jax.tree.map(np.array, params)
    params["head"][:, half] *= 300
    pieces = list(stream_text(params, build_net(model), TOKENIZER, SAMPLING, chunk))
    assert pieces[0] == SAMPLING.prompt
    assert "".join(pieces) == sample_text(params, build_net(model), TOKENIZER, SAMPLING)
    ids = encode_prompt(TOKENIZER, SAMPLING.prompt, 32)
    assert list(stream_answer(params, build_net(model), TOKENIZER, ids, SAMPLING, chunk)) == pieces[1:]
