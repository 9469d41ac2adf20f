"""The exported page in headless Chromium: it computes what the model does, shows it, and runs no foreign script.

With ZEROTOLLM_PICTURES=DIR its pictures are kept there, to be looked at.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from experiments.base import experiment
from tests.browser import WAIT_MS, chromium
from tests.functions import forward, init_params
from tests.imported_tokenizers import MAKERS as IMPORTED
from tests.imported_tokenizers import byte_level, imported_tokenizer, sample_texts
from tests.programs.test_numpy_program import CONTEXT, MODELS, PROMPT, TEXT, TOKENS, random_model
from zerotollm.data.tokens.conversations import conversation_encoder, trim_conversation
from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import generate_texts
from zerotollm.decoding.translate import translate_texts
from zerotollm.model.build import Params, build_net
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.programs.html_program import MOVED, Facts, page, seven_bits, write_html
from zerotollm.programs.quantized import Agreement, Rows, compare, quantize, round_params

playwright = pytest.importorskip(
    "playwright.sync_api", reason="a development requirement: requirements-dev.txt"
)
expect = playwright.expect
GREEDY = SamplingConfig(max_tokens=TOKENS, temperature=0.0)
FACTS = Facts("tiny", "a text", 7, 1.5, Agreement(995, 1000), GREEDY)
LOOKS = {
    "light": {"viewport": {"width": 1240, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@contextmanager
def opened(
    browser: Any, file: Path, look: str = "light", before: str = "", allowed: str = "\0"
) -> Iterator[Any]:
    """Open a page from its file. It must ask nobody for anything, and its console says only what is `allowed`."""
    wrong: list[str] = []
    context = browser.new_context(**LOOKS[look])
    context.set_default_timeout(WAIT_MS)
    tab = context.new_page()
    tab.on("console", lambda message: allowed in message.text or wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda r: None if r.url == file.as_uri() or r.url == "data:," else wrong.append(r.url))
    if before:
        tab.add_init_script(before)
    tab.goto(file.as_uri())
    yield tab
    if "ZEROTOLLM_PICTURES" in os.environ:
        tab.screenshot(path=f"{os.environ['ZEROTOLLM_PICTURES']}/{file.stem}_{look}.png", full_page=True)
    context.close()
    assert not wrong


def written(
    folder: Path, name: str, facts: Facts = FACTS
) -> tuple[Path, TransformerConfig, Params, Tokenizer]:
    config, params, tokenizer = random_model(name)
    file = folder / f"{name}.html"
    write_html(file, params, config, tokenizer, facts)
    return file, config, round_params(params), tokenizer


def wait_until_written(tab: Any) -> None:
    expect(tab.locator("#status")).to_contain_text("tokens/s")
    expect(tab.locator("#send")).not_to_have_text("Stop")


COMPUTED = """([text, ids, source]) => ({
  ids: tokenizer.encode(text),
  logits: ids.map((_, n) => Array.from(
    network.logits(network.read(network.newReading(), ids.slice(0, n + 1), new Set(), source), n))),
  vectorized: products.vectorized,
})"""


@pytest.mark.parametrize(
    ("name", "before"), [*((n, "") for n in MODELS), ("gpt2", "delete window.WebAssembly")]
)
def test_it_computes_and_writes_what_the_model_in_8_bits_does(browser, tmp_path, name, before):
    pairs = MODELS[name].architecture == "encoder-decoder"
    file, config, params, tokenizer = written(tmp_path, name, replace(FACTS, translates=pairs))
    random = np.random.default_rng(2)
    ids_BT, source_BS = (random.integers(4, tokenizer.vocab_size, (1, n)).astype(np.int32) for n in (12, 7))
    with opened(browser, file, before=before) as tab:
        theirs = tab.evaluate(COMPUTED, [TEXT, ids_BT[0].tolist(), source_BS[0].tolist() if pairs else []])
        assert theirs["vectorized"] == (not before)
        assert theirs["ids"] == tokenizer.encode(TEXT).tolist()
        inputs = (source_BS, source_BS >= 0, ids_BT) if pairs else (ids_BT,)
        np.testing.assert_allclose(theirs["logits"], forward(config)(params, *inputs)[0], atol=2e-4)
        tab.locator("#prompt").fill(PROMPT)
        tab.locator("#send").click()
        wait_until_written(tab)
        text = tab.evaluate("tokenizer.decode(ids())")
        if pairs:
            tab.locator('[data-part="1.x0"]').click()
            shades = "all => all.map(one => Number(one.style.getPropertyValue('--shade')))"
            shade_S = tab.locator("#log .source").evaluate_all(shades)
            assert len(shade_S) == len(tokenizer.encode(f" {PROMPT}")) + 1
            assert sum(shade_S) == pytest.approx(1, abs=0.01)
    net, greedy = build_net(config), replace(GREEDY, beam_size=1)
    if pairs:
        ((ours,),) = translate_texts(params, net, tokenizer, [PROMPT], greedy)
        assert text.strip() == ours.text
    else:
        (ours,) = generate_texts(params, net, tokenizer, [PROMPT], greedy)
        assert text == ours


@pytest.mark.parametrize("name", IMPORTED)
def test_it_gives_the_ids_of_an_imported_tokenizer(browser, tmp_path, name):
    tokenizer, texts = imported_tokenizer(name), sample_texts(400)
    sizes = TransformerConfig(num_layers=1, width=8, num_heads=1)
    config = resolve(sizes, vocab_size=tokenizer.vocab_size, context=128)
    facts = replace(FACTS, sampling=replace(GREEDY, max_tokens=5, prompt="heaven"))
    write_html(tmp_path / f"{name}.html", init_params(config, 0), config, tokenizer, facts)
    with opened(browser, tmp_path / f"{name}.html") as tab:
        encoded = tab.evaluate("texts => texts.map(text => tokenizer.encode(text))", texts)
        decoded = tab.evaluate("all => all.map(some => tokenizer.decode(some))", encoded)
        for text, ids, again in zip(texts, encoded, decoded, strict=True):
            assert ids == tokenizer.encode(text).tolist(), text
            assert again == tokenizer.decode(ids)
        special = {str(i): tokenizer.piece(i) for i in tokenizer.special_ids}
        assert tab.evaluate("ids => ids.map(tokenizer.name)", [*map(int, special)]) == [*special.values()]
        tab.locator("#prompt").fill(TEXT[:20])
        tab.locator("#send").click()
        wait_until_written(tab)


def shares(tab: Any) -> list[str]:
    return tab.locator("#choices .choice").evaluate_all(
        "all => all.map(one => one.getAttribute('aria-label'))"
    )


def test_tokens_branch_and_every_switch_moves_the_distribution(browser, tmp_path):
    facts = replace(FACTS, sampling=SamplingConfig(max_tokens=12, temperature=1.0))
    file, config, params, tokenizer = written(tmp_path, "qwen3", facts)
    with opened(browser, file) as tab:
        expect(tab.locator("#about")).to_contain_text("In 99.5 % of 1,000 held-out positions")
        expect(tab.locator("#facts")).to_contain_text("1.5000 bits per byte")
        tab.locator("#prompt").fill(PROMPT)
        tab.keyboard.press("Enter")
        wait_until_written(tab)
        tokens = tab.locator("#log .token[role=button]")
        expect(tab.locator("#moved")).to_have_text("This is the whole model at temperature 1.")

        # By keyboard alone: arrows move along the tokens, and the panel follows.
        tokens.last.focus()
        tab.keyboard.press("Home")
        expect(tokens.nth(0)).to_be_focused()
        tab.keyboard.press("ArrowRight")
        expect(tokens.nth(1)).to_have_attribute("aria-current", "true")
        expect(tab.locator("#next-title")).to_contain_text("Instead of")
        ids = tab.evaluate("ids()")
        logits_V = np.asarray(
            forward(config)(params, np.array([ids[:2]]))[0, -1, : tokenizer.vocab_size], float
        )
        p_V = np.exp(logits_V - logits_V.max()) / np.exp(logits_V - logits_V.max()).sum()
        shown = tab.evaluate("Array.from(session.probabilities(ids(), 2, new Set(), { temperature: 1 }))")
        allowed_V = tokenizer.utf8.next_state_SV[0] >= 0
        np.testing.assert_allclose(shown, np.where(allowed_V, p_V, 0) / p_V[allowed_V].sum(), atol=1e-5)

        # Each switch moves the distribution at once; putting everything back restores it.
        before = shares(tab)
        for part in ("0.0", "1.feed_forward", "1"):
            tab.locator(f'[data-part="{part}"]').click()
            tab.locator("#take").click()
            assert shares(tab) != before
            expect(tab.locator("#moved")).to_contain_text("of the probability has moved")
            tab.get_by_role("button", name="Put all back").click()
            assert shares(tab) == before
        tab.get_by_label("Temperature").fill("0.3")
        assert shares(tab) != before
        tab.get_by_label("Temperature").fill("1")
        assert shares(tab) == before

        # Another token here, and the rest is kept; undone; then the rest is written anew.
        tab.get_by_label("Replace this token alone").check()
        tab.locator("#choices .choice:not(.here)").first.click()
        replaced = tab.evaluate("ids()")
        assert [n for n in range(len(ids)) if ids[n] != replaced[n]] == [2]
        tab.get_by_role("button", name="Undo").click()
        assert tab.evaluate("ids()") == ids
        tokens.nth(1).click()
        tab.get_by_label("Continue from it").check()
        tab.get_by_label("Another text here").fill(" earth")
        tab.get_by_role("button", name="Use").click()
        wait_until_written(tab)
        start = [*ids[:2], *tokenizer.encode(" earth")]
        assert tab.evaluate("ids()")[: len(start)] == start

        # Attention of a head, by the keyboard, adds up to all; the lens ends in the model's own prediction.
        tab.locator('[data-part="1.0"]').click()
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("ArrowRight")
        expect(tab.locator('[data-part="1.0"]')).to_be_focused()
        tab.keyboard.press("Enter")
        assert tab.evaluate("lookedAt().weights.reduce((a, b) => a + b, 0)") == pytest.approx(1)
        assert tab.locator("#lens tr").count() == config.num_layers + 1
        lens = tab.evaluate("session.lensAt(ids(), 3, page.off, 5).at(-1)")
        assert lens["chance"] == pytest.approx(tab.evaluate("session.chances(ids(), 3, page.off)[5]"))
        accessible = "all => all.every(one => one.labels?.length || one.textContent.trim() || one.ariaLabel)"
        assert tab.locator("button, input, select, textarea").evaluate_all(accessible)


def without_head(layer: Params, name: str, head: int, width: int) -> Params:
    output = np.array(layer[name]["output"])
    output[head * width : (head + 1) * width] = 0
    return layer | {name: layer[name] | {"output": output}}


@pytest.mark.parametrize(
    ("name", "part", "stack", "layer", "attention"),
    [
        ("qwen2", "1.2", "", "layer_1", "attention"),
        ("pairs", "1.2", "decoder", "layer_1", "attention"),
        ("pairs", "0.x2", "decoder", "layer_0", "cross_attention"),
        ("pairs", "e0.2", "encoder", "layer_0", "attention"),
    ],
)
def test_a_head_taken_out_is_zero_ablation(browser, tmp_path, name, part, stack, layer, attention):
    file, config, params, _ = written(tmp_path, name, replace(FACTS, translates=bool(stack)))
    ids, source = [1, 5, 9, 40, 41], [7, 8, 9, 2] if stack else []
    layers = params[stack] if stack else params
    changed = layers | {layer: without_head(layers[layer], attention, 2, config.head_width)}
    with opened(browser, file) as tab:
        at_once, later = tab.evaluate(
            """([ids, off, source]) => {
                const { newReading, read } = network, without = new Set([off]);
                const logits = reading => Array.from(network.logits(read(reading, ids, without, source), 4));
                return [logits(newReading()), logits(read(newReading(), ids, new Set(), source))];
            }""",
            [ids, part, source],
        )
    inputs = [np.array([x]) for x in (source, ids) if x]
    inputs = [inputs[0], inputs[0] >= 0, inputs[1]] if stack else inputs
    ours = forward(config)(params | {stack: changed} if stack else changed, *inputs)[0, -1]
    np.testing.assert_allclose(at_once, ours, atol=2e-4)
    np.testing.assert_allclose(later, ours, atol=2e-4)
    assert np.abs(ours - np.asarray(forward(config)(params, *inputs)[0, -1])).max() > 1e-2


def test_a_conversation_has_the_tokens_of_training(browser, tmp_path):
    facts = replace(FACTS, chats=True, sampling=SamplingConfig(max_tokens=3, temperature=0.0))
    config, params, tokenizer = random_model("qwen3")
    file, context = tmp_path / "chat.html", 48
    write_html(file, params, replace(config, max_length=context), tokenizer, facts)
    encode = conversation_encoder(tokenizer, trained_here=True)
    said = "<b>heaven</b>\u2003"
    with opened(browser, file, "phone") as tab:
        expect(tab.get_by_label("Chat")).to_be_checked()
        tab.locator("#prompt").fill(said)
        tab.get_by_role("button", name="Send").click()
        wait_until_written(tab)
        messages = [{"role": "user", "content": said}]
        ours, kept = trim_conversation(encode, messages, context - 3)
        assert kept == messages
        ids = tab.evaluate("ids()")
        assert ids[: len(ours)] == ours.tolist()
        assert tab.locator("#log b").count() == 0
        answer = tokenizer.decode(
            np.array([i for i in ids[len(ours) :] if i != tokenizer.bos_id]), final=False
        )
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "earth"}]
        theirs = tab.evaluate("([messages, most]) => session.trimConversation(messages, most)", [messages, 3])
        ours, kept = trim_conversation(encode, messages, context - 3)
        assert [token["id"] for token in theirs["tokens"]] == ours.tolist()
        assert theirs["dropped"] == len(messages) - len(kept)
        assert tab.evaluate("session.messagesOf(ids())")[0] == {"role": "user", "content": "<b>heaven</b>"}
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_text_longer_than_the_context_is_refused_in_one_line(browser, tmp_path):
    file, *_ = written(tmp_path, "gpt2")
    with opened(browser, file) as tab:
        tab.locator("#prompt").fill("heaven " * 30)
        tab.get_by_role("button", name="Write", exact=True).click()
        expect(tab.locator("#status")).to_contain_text("the context of this model holds 23: shorten it")


HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<img\u00a0src=x\u00a0onerror=window.hacked=1>",
    "<!--<script>",
    "__proto__",
    "constructor",
    "\u2028';window.hacked=1;//",
)


def hostile_pieces() -> tuple[Tokenizer, list[int], list[int]]:
    """Return a tokenizer that was trained here, and the ids of its hostile pieces; no special one is hostile."""
    proto = ModelProto.FromString(random_model("qwen3")[2].model)
    ids = [i for i, piece in enumerate(proto.pieces) if piece.type == piece.NORMAL and len(piece.piece) > 1]
    for i, text in zip(ids, HOSTILE, strict=False):
        proto.pieces[i].piece = text
    return Tokenizer(proto.SerializeToString(deterministic=True)), ids[: len(HOSTILE)], []


def hostile_import() -> tuple[PretrainedTokenizer, list[int], list[int]]:
    """Return an imported tokenizer, the ids of its hostile added tokens, and that of a hostile special token."""
    fields = json.loads(byte_level(added=HOSTILE).model)
    added = {token["content"]: token for token in fields["tokenizer"]["added_tokens"]}
    fields["tokenizer"]["model"]["vocab"].pop("<|end|>", None)
    added["<|end|>"]["content"] = "</script><script>window.hacked=2</script>"
    ids = [added[text]["id"] for text in HOSTILE]
    return PretrainedTokenizer(json.dumps(fields).encode()), ids, [added["<|end|>"]["id"]]


@pytest.mark.parametrize("hostile_tokenizer", [hostile_pieces, hostile_import])
def test_ten_megabytes_of_hostile_tokens_and_texts_run_no_script(browser, tmp_path, hostile_tokenizer):
    config, params, _ = random_model("qwen3")
    hostile, normal, hostile_special = hostile_tokenizer()
    rows = 280_000  # most of the rows belong to no token, as in a vocabulary that is padded
    params = params | {"embedding": np.resize(params["embedding"], (rows, config.width))}
    facts = replace(FACTS, title=HOSTILE[0], corpus=HOSTILE[1], sampling=replace(GREEDY, prompt=HOSTILE[0]))
    file = tmp_path / "hostile.html"
    write_html(file, params, replace(config, vocab_size=rows, max_length=128), hostile, facts)
    assert file.stat().st_size > 10_000_000
    with opened(browser, file) as tab:
        expect(tab.locator("h1")).to_have_text(HOSTILE[0])
        tab.get_by_text("Sampling").click()
        tab.get_by_label("Tokens", exact=True).fill("2")
        for i, text in zip(normal, HOSTILE, strict=True):
            tab.locator("#prompt").fill(text)
            tab.get_by_role("button", name="Write", exact=True).click()
            wait_until_written(tab)
            assert text in tab.evaluate("tokenizer.decode(ids())")
            tab.evaluate("id => choose([id])", i)
            expect(tab.locator("#log .given").last).to_have_text(text)
        for i in hostile_special:
            tab.evaluate("id => choose([id])", i)
            label = re.compile(re.escape("</script><script>window.hacked=2"))
            expect(tab.locator("#log .given").last).to_have_attribute("aria-label", label)
        assert tab.locator("img").count() == 0
        assert tab.locator("script").count() == 2  # the weights are removed once they are read
        assert tab.evaluate("window.hacked") is None


def test_the_policy_refuses_a_script_that_comes_in_all_the_same(browser, tmp_path):
    file, *_ = written(tmp_path, "gpt2")
    inline = """() => new Promise(resolve => {
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        addEventListener('securitypolicyviolation', event => resolve([event.effectiveDirective, window.hacked]));
        document.body.append(script);
    })"""
    with opened(browser, file, allowed="Content Security Policy") as tab:
        assert tab.evaluate(inline) == ["script-src-elem", None]


def base_model() -> tuple[TransformerConfig, Params]:
    """Return a model of the size of base, untrained."""
    config = resolve(experiment().model, vocab_size=4096, context=256)
    return config, jax.tree.map(np.asarray, init_params(config, 0))


def test_a_file_has_at_most_1_2_times_the_weights_in_8_bits_and_300_kb():
    (config, params), (_, _, tokenizer) = base_model(), random_model("llama")
    size, weights = (
        len(page(params, config, tokenizer, FACTS).encode()),
        sum(map(np.size, jax.tree.leaves(params))),
    )
    vocabulary = 120_000  # about that of base; this tokenizer's is small
    assert 1.1 * weights < size < 1.2 * weights + 300_000 - vocabulary


def test_seven_bits_hold_any_byte_and_no_code_that_a_script_element_changes():
    payload = np.random.default_rng(0).integers(0, 256, 10_003, np.uint8).tobytes()
    text = seven_bits(payload)
    assert not set(map(chr, MOVED)) & set(text)
    codes = np.frombuffer(text.encode("latin-1"), np.uint8) & 127
    bits = np.unpackbits(codes[:, None], axis=1)[:, 1:]
    assert np.packbits(bits.reshape(-1)).tobytes()[: len(payload)] == payload
    assert len(text.encode()) < 1.18 * len(payload)


def test_a_row_is_rounded_to_half_a_step_and_the_likeliest_tokens_are_compared():
    config, params, _ = random_model("gpt2")
    net, rounded = build_net(config), round_params(params)
    for name, rows in quantize(params).items():
        if isinstance(rows, Rows):
            exact = params["embedding"] if name == "embedding" else None
            assert rows.small_RX.min() >= -127
            if exact is not None:
                error_R = np.abs(np.asarray(rounded["embedding"]) - exact).max(axis=1)
                assert (error_R <= rows.scales_R * 0.501).all()
    shape = (4, CONTEXT)
    inputs = np.random.default_rng(3).integers(4, 300, shape).astype(np.int32)
    weights = np.ones(shape, np.float32)
    weights[:, ::2] = 0
    batches = [{"inputs": inputs, "targets": inputs, "weights": weights}]
    found = compare(net, params, batches, 300)
    assert found.positions == weights.sum()
    best = [forward(config)(p, inputs)[..., :300].argmax(-1) for p in (params, rounded)]
    assert found.same == int((np.asarray(best[0]) == np.asarray(best[1]))[weights > 0].sum())
    # One large weight a row leaves no steps for the others.
    outlier = jax.tree.map(lambda x: x + 1e4 * (np.arange(x.shape[-1]) == 0) if x.ndim > 1 else x, params)
    assert compare(net, outlier, batches, 300).share < 1


@pytest.mark.slow
def test_base_writes_100_tokens_a_second(browser, tmp_path):
    """Speed does not depend on what the weights are: random ones of the sizes of base."""
    (config, params), (_, _, tokenizer) = base_model(), random_model("gpt2")
    facts = replace(FACTS, sampling=SamplingConfig(max_tokens=200))
    write_html(tmp_path / "base.html", params, config, tokenizer, facts)
    with opened(browser, tmp_path / "base.html") as tab:
        rates = []
        for seed in range(3):
            tab.evaluate(f"at('seed').value = {seed}")
            tab.evaluate("at('status').textContent = ''")
            tab.get_by_role("button", name="Write", exact=True).click()
            wait_until_written(tab)
            count, rate = re.match(
                r"(\d+) tokens, (\d+) tokens/s", tab.locator("#status").inner_text()
            ).groups()
            rates.append(int(rate)) if int(count) > 50 else None
        assert rates
        assert max(rates) >= 100
