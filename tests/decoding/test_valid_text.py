"""Sampled text is valid UTF-8, whatever the model, the sampling parameters and the end of the prompt."""

import json
from itertools import product

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.data.tokens.test_utf8 import is_text, starts_character
from tests.functions import forward, init_params
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.pretrained import pretrained_tokenizer
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.decoding import sample
from zerotollm.decoding.beam import beam_search, hypotheses
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import stream_answer
from zerotollm.decoding.translate import translate_texts
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, resolve

TEXTS = ["heaven earth light waters é 光 を 海 😀 ж न\n"] * 60
VOCAB_SIZE = 290
SMALL = TransformerConfig(num_layers=1, width=16, num_heads=2)
SETTINGS = (
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "min_p": 0.9},
    {"temperature": 1.0},
    {"temperature": 5.0},
)


def byte_level():
    """A tokenizer like GPT-2's, with pieces that hold parts of characters."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    library.train_from_iterator(TEXTS, trainer)
    return pretrained_tokenizer(json.loads(library.to_str()), bos_id=0, eos_id=1, pad_id=None, source="here")


@pytest.fixture(scope="module", params=["sentencepiece", "byte-level"])
def decoder(request):
    """A tokenizer and an untrained decoder, to which most tokens are equally likely: many are single bytes."""
    sentencepiece = request.param == "sentencepiece"
    tokenizer = train_tokenizer(TokenizerConfig("bpe", VOCAB_SIZE), TEXTS) if sentencepiece else byte_level()
    config = resolve(SMALL, vocab_size=tokenizer.vocab_size, context=24)
    return tokenizer, config, init_params(config, 0)


def prompts_of(tokenizer) -> list[np.ndarray]:
    """Return prompts that end after every number of bytes of some characters, and one that ends in other bytes."""
    id_of = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    ends = [c.encode()[:n] for c in "é光\u0900\ud7ff😀\U0010ffff" for n in range(len(c.encode()))]
    ends += [b"\xa0\xc3\xff"]
    return [np.array([tokenizer.bos_id, *(id_of[bytes([b])] for b in end)], np.int32) for end in ends]


def bytes_of(tokenizer, ids) -> bytes:
    return b"".join(tokenizer.token_bytes(int(i)) for i in ids)


def is_valid(text: bytes, cut: bool) -> bool:
    """Whether a text is UTF-8, perhaps without the end of its last character if it was `cut`."""
    ends = (len(text) - n for n in (1, 2, 3) if n <= len(text))
    return is_text(text) or (cut and any(starts_character(text[n:]) and is_text(text[:n]) for n in ends))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_sampled_text_is_valid(decoder, setting):
    """Past the context too, where the end of the text is read again."""
    tokenizer, config, params = decoder
    prompts, sampling = prompts_of(tokenizer), SamplingConfig(max_tokens=60, **setting)
    fixed = {"stop_ids": tokenizer.stop_ids, "utf8": tokenizer.utf8}
    net = build_net(config)
    drawn = sample.generate(params, net, prompts, sampling, **fixed)
    texts = [
        bytes_of(tokenizer, [*prompt[-3:], *ids]) for prompt, ids in zip(prompts[:-1], drawn, strict=False)
    ]
    texts.append(bytes_of(tokenizer, drawn[-1]))
    for text, ids in zip(texts, drawn, strict=True):
        assert is_valid(text, cut=len(ids) == 60), text
    assert any(not text.isascii() for text in texts), "no character has several bytes"
    if setting == {"temperature": 1.0}:
        others = [prompts[-1], *prompts[1:]]
        (alone,) = sample.generate(params, net, prompts[-1:], sampling, **fixed)
        assert alone.tolist() == sample.generate(params, net, others, sampling, **fixed)[0].tolist()


def test_a_single_token_is_drawn_as_in_a_text(decoder):
    tokenizer, config, params = decoder
    fixed = {"stop_ids": tokenizer.stop_ids, "utf8": tokenizer.utf8}
    logits_of = forward(config)
    for temperature, end in product((0.0, 1.0), (1, 3)):
        prompt, sampling = prompts_of(tokenizer)[end], SamplingConfig(max_tokens=1, temperature=temperature)
        logits_V = np.asarray(logits_of(params, prompt[None]))[0, -1]
        drawn = sample.draw_one(sampling, tokenizer.utf8, logits_V, prompt)
        (expected,) = sample.generate(params, build_net(config), [prompt], sampling, **fixed)
        assert [drawn] == expected.tolist()
        p_V = sample.probabilities(sampling, tokenizer.utf8, logits_V[: tokenizer.vocab_size], prompt)
        assert p_V.sum() == pytest.approx(1)
        assert not p_V[~tokenizer.utf8.may_follow(prompt)].any()
    cold = SamplingConfig(max_tokens=1, temperature=1e-42)  # greedy too, where a division gives no number
    p_V = sample.probabilities(cold, tokenizer.utf8, logits_V[: tokenizer.vocab_size], prompt)
    assert p_V.tolist() == np.eye(len(p_V))[sample.draw_one(cold, tokenizer.utf8, logits_V, prompt)].tolist()


@pytest.mark.parametrize("chunk", [1, 7])
def test_a_streamed_text_is_valid_and_without_a_character_that_its_length_cuts(decoder, chunk):
    tokenizer, config, params = decoder
    cut = 0
    for seed, prompt in product(range(3), prompts_of(tokenizer)[1:4]):
        sampling = SamplingConfig(max_tokens=20, temperature=5.0, seed=seed)
        (ids,) = sample.generate(
            params, build_net(config), [prompt], sampling, stop_ids=tokenizer.stop_ids, utf8=tokenizer.utf8
        )
        text = tokenizer.utf8.unfinished(prompt) + bytes_of(tokenizer, ids)
        unfinished = tokenizer.utf8.unfinished(np.append(prompt, ids))
        expected = text.removesuffix(unfinished).decode("utf-8")
        assert (
            "".join(stream_answer(params, build_net(config), tokenizer, prompt, sampling, chunk)) == expected
        )
        assert (tokenizer.decode(ids, final=False) + "\ufffd" == tokenizer.decode(ids)) == bool(unfinished)
        cut += bool(unfinished)
    assert 0 < cut < 9


@pytest.mark.parametrize("beam", [3, 20])
def test_every_hypothesis_of_a_beam_is_valid(decoder, beam):
    """In the narrowest states of UTF-8, a beam of 20 is wider than the number of tokens that may follow."""
    tokenizer, _, _ = decoder
    model = TransformerConfig(architecture="encoder-decoder", num_layers=1, width=16, num_heads=2)
    config = resolve(model, vocab_size=tokenizer.vocab_size, context=32)
    rng = np.random.default_rng(beam)
    params = init_params(config, 0)
    params["head"] = rng.normal(size=params["head"].shape).astype(np.float32)
    limit_B = np.array([3, 12, 16, 16], np.int32)
    sources = rng.integers(4, tokenizer.vocab_size, (4, 6)).astype(np.int32)
    special = (0, 0, tokenizer.eos_id)
    output = beam_search(
        params, sources, sources > 0, limit_B, 0.6, net=build_net(config), beam=beam, slots=16,
        next_state_SV=tokenizer.utf8.next_state_SV, special=special,
    )  # fmt: skip
    lengths = []
    for limit, found in zip(limit_B, hypotheses(*output, eos=tokenizer.eos_id), strict=True):
        assert len(found) == beam
        for hypothesis in found:
            text = bytes_of(tokenizer, hypothesis.ids)
            assert is_valid(text, cut=len(hypothesis.ids) == limit - 1), text
            lengths.append(len(hypothesis.ids))
    assert max(lengths) > 2
    if beam == 20:
        return
    translations = translate_texts(
        params, build_net(config), tokenizer, ["heaven", "光"], SamplingConfig(max_tokens=3, beam_size=beam)
    )
    assert not any("\ufffd" in best.text for (best,) in translations)
