"""EleutherAI's harness asks the server as it asks any of its kind: `lm_eval --model local-completions`."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from zerotollm.decoding import sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.evaluation.likelihood import log_likelihoods
from zerotollm.interop import qwen3
from zerotollm.interop.huggingface import tokenizer_files
from zerotollm.model.build import build_net

completions = pytest.importorskip(
    "lm_eval.models.openai_completions", reason="optional: requirements-torch.txt"
)
for package in ("aiohttp", "tenacity"):
    pytest.importorskip(package, reason="optional: requirements-torch.txt")
PAIRS = [("heaven", " light"), ("heaven", " earth day"), ("", " waters"), ("day 光 é", " é light light")]


@pytest.fixture(scope="module")
def tokenizer(tiny, tmp_path_factory):
    """The folder of the exported tokenizer, with which the harness makes token ids of texts."""
    folder = tmp_path_factory.mktemp("exported")
    for name, content in tokenizer_files(
        qwen3.FAMILY, replace(tiny.model, token_shift=0), tiny.tokenizer
    ).items():
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.fixture(params=[{}, {"batch_size": 3}, {"num_concurrent": 4}], ids=["alone", "batches", "at once"])
def harness(server, tokenizer, request, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return completions.LocalCompletionsAPI(
        model="tiny", base_url=f"{server}/v1/completions", tokenizer=tokenizer, add_bos_token=True, max_length=49,
        max_retries=1, **request.param,
    )  # fmt: skip


def asked(*arguments) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def own(tiny, text: str, scored: int):
    ids = np.array([1, *tiny.tokenizer.encode(text)], np.int32)
    (found,) = log_likelihoods(tiny.params, tiny.model, [(ids, scored)], num_tokens=290, rows=1)
    return found


def likeliest_pair(tiny) -> tuple[str, str]:
    """A context and the text that is the likeliest token after it, and the same token when both are encoded."""
    for before in ("heaven", "earth", "light", "waters", "day", "heaven day", "earth light", "day day"):
        ids = [1, *tiny.tokenizer.encode(before).tolist()]
        (drawn,) = sample.generate(
            tiny.params, build_net(tiny.model), [np.array(ids, np.int32)],
            SamplingConfig(max_tokens=1, temperature=0.0), stop_ids=(), utf8=tiny.tokenizer.utf8,
        )  # fmt: skip
        after = tiny.tokenizer.decode(drawn)
        if after and [1, *tiny.tokenizer.encode(before + after).tolist()] == [*ids, *drawn.tolist()]:
            return before, after
    raise AssertionError("no such pair")


def test_likelihoods_are_the_models_own(tiny, harness):
    pairs = [*PAIRS, likeliest_pair(tiny)]
    found = harness.loglikelihood([asked(*pair) for pair in pairs])
    for (before, after), (log_p, is_greedy) in zip(pairs, found, strict=True):
        expected = own(tiny, before + after, len(tiny.tokenizer.encode(after)))
        assert log_p == pytest.approx(expected.log_p, abs=1e-4)
        assert is_greedy == expected.greedy
    assert [is_greedy for _, is_greedy in found] == [False] * len(PAIRS) + [True]


def test_a_rolled_text_is_scored_once_each_token(tiny, harness):
    harness.add_bos_token = False  # there the harness itself puts bos before a text
    texts = [" light day heaven", " waters é"]
    found = harness.loglikelihood_rolling([asked(text) for text in texts])
    for text, log_p in zip(texts, found, strict=True):
        expected = own(tiny, text, len(tiny.tokenizer.encode(text)))
        assert log_p == pytest.approx(expected.log_p, abs=1e-4)


def test_texts_are_written_as_generate_writes_them(tiny, harness):
    (text,) = harness.generate_until([asked("heaven", {"until": ["zzz"], "max_gen_toks": 6})])
    ids_N = np.array([1, *tiny.tokenizer.encode("heaven")], np.int32)
    settings = SamplingConfig(max_tokens=6, temperature=0.0)
    (expected,) = sample.generate(
        tiny.params, build_net(tiny.model), [ids_N], settings, stop_ids=(1,), utf8=tiny.tokenizer.utf8
    )
    assert text == tiny.tokenizer.decode(expected, final=False)
