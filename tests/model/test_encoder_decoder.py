"""The encoder-decoder: what each side sees, the paper's equations, and the reference implementation with padding."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import forward, init_params
from tests.model.by_hand import attend
from zerotollm.interop import marian
from zerotollm.interop.torch_model import torch_model
from zerotollm.interop.weights import from_theirs, parameter_shapes
from zerotollm.model.blocks import EncoderOutput
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.encoder_decoder import EncoderDecoder
from zerotollm.model.layers import KVCache, sinusoid

PAPER = resolve(
    TransformerConfig(
        architecture="encoder-decoder", num_layers=1, encoder_layers=1, width=32, num_heads=4, ff_width=64,
        feed_forward="relu", biases="feed_forward", norm="layer", norm_position="post", norm_epsilon=1e-5,
        position="sinusoidal", qk_norm=False, tie_embeddings=True, embedding_scale=True, initialization="plain",
    ),
    vocab_size=64,
    context=16,
)  # fmt: skip
MODERN = replace(
    PAPER, feed_forward="swiglu", biases="none", norm="rms", norm_position="pre", position="rope", qk_norm=True,
    num_kv_heads=2,
)  # fmt: skip
OTHER = replace(PAPER, position="learned", tie_embeddings=False, key_width=4, biases="all")
VARIANTS = {
    "paper": PAPER,
    "modern": MODERN,
    "other": OTHER,
    "shifted": replace(MODERN, token_shift=2, cross_rope=True),
}
each_variant = pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
SOURCE, TARGET = 7, 6
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@lru_cache
def noisy(model):
    """Random parameters, norms and biases away from 1 and 0, so that a forgotten one shows."""
    rng = np.random.default_rng(1)

    def random(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.1 if leaf.ndim == 1 else 0.2, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(random, jax.eval_shape(lambda: init_params(model, 0)))


def ids(batch, length, seed):
    return np.random.default_rng(seed).integers(4, 64, (batch, length)).astype(np.int32)


def padded_mask():
    return np.arange(SOURCE)[None] < np.array([[SOURCE], [4]])


@partial(quick_jit, static_argnums=0)
def logits(model, params, sources_BS, mask_BS, tokens_BT):
    return forward(model)(params, sources_BS, mask_BS, tokens_BT)


# --- what is seen, by gradients with respect to embedded tokens


@partial(quick_jit, static_argnums=0)
def influence(model, params, source_T, mask_S, target_T, position):
    """How much each source and each target token moves the decoder's states at one position; and the encoder's."""
    bound = EncoderDecoder(model).bind({"params": params})
    mix_D = jnp.arange(1.0, model.width + 1)

    def encoder(sources_SD):
        return bound.encoder(sources_SD[None], mask_S[None])

    def decoder(sources_SD, targets_TD):
        x_BTD, _ = bound.decoder(targets_TD[None], EncoderOutput(mask_S[None], encoder(sources_SD)))
        return jnp.sum(x_BTD[0, position] * mix_D)

    embedded = params["embedding"][source_T], params["embedding"][target_T]
    gradients = jax.grad(decoder, argnums=(0, 1))(*embedded)
    gradients += (jax.grad(lambda x: jnp.sum(encoder(x)[0, 1] * mix_D))(embedded[0]),)
    return [jnp.abs(gradient).sum(-1) for gradient in gradients]


@each_variant
def test_decoder_is_causal_encoder_is_bidirectional_and_padding_is_masked(model):
    source_T, target_T, mask_S = ids(1, SOURCE, 2)[0], ids(1, TARGET, 3)[0], padded_mask()[1]
    for position in (0, 2, TARGET - 1):
        seen = influence(model, noisy(model), source_T, mask_S, target_T, position)
        of_source, of_target, in_encoder = map(np.asarray, seen)
        assert (of_target[: position + 1] > 0).all(), "an earlier target token has no influence"
        assert (of_target[position + 1 :] == 0).all(), "a later target token has influence"
        for moved in (of_source, in_encoder):
            assert (moved[:4] > 0).all(), "a source token has no influence"
            assert (moved[4:] == 0).all(), "padding has influence"


@each_variant
def test_content_of_padding_has_no_effect(model):
    params = noisy(model)
    sources_BS, tokens_BT = ids(1, 4, 2), ids(1, TARGET, 3)
    alone = logits(model, params, sources_BS, np.ones((1, 4), bool), tokens_BT)
    longer_BS = np.concatenate([sources_BS, ids(1, 3, 9)], axis=1)
    # Four rows, as in the next test: one program. Two of them padded, two as if padding were words.
    mask_BS = padded_mask()[[1, 1, 0, 0]]
    padded = logits(model, params, longer_BS.repeat(4, 0), mask_BS, tokens_BT.repeat(4, 0))
    np.testing.assert_allclose(alone[0], padded[0], atol=1e-5)
    assert not np.allclose(alone[0], padded[2], atol=1e-3), "the mask does nothing"


@each_variant
def test_decoding_with_caches_equals_the_full_forward_pass(model):
    """Token by token, with the keys and values of the source computed once and shared by two rows of a beam."""
    params = noisy(model)
    sources_BS, mask_BS = ids(2, SOURCE, 2), padded_mask()
    tokens_BT = ids(4, TARGET, 3)  # two hypotheses of each source
    expected = logits(model, params, sources_BS.repeat(2, 0), mask_BS.repeat(2, 0), tokens_BT)
    bound = EncoderDecoder(model).bind({"params": params})
    encoded = [quick_jit(read)(sources_BS, mask_BS) for read in (bound.encode, bound.precompute_kv)]
    shape = (4, model.num_kv_heads, TARGET)
    caches = tuple(
        KVCache(jnp.zeros((*shape, model.key_width)), jnp.zeros((*shape, model.head_width)))
        for _ in range(model.num_layers)
    )

    @quick_jit
    def one(tokens_B1, before_B1N, encoder, caches, t):
        mask_11S = (jnp.arange(TARGET) <= t)[None, None]
        readout, caches = bound.decode(
            tokens_B1,
            caches,
            encoder,
            positions_BT=t[None, None],
            mask_BTS=mask_11S,
            slot=t,
            before_BTN=before_B1N,
        )
        return readout.logits(), caches

    N = model.token_shift
    longer_BT = np.pad(tokens_BT, ((0, 0), (N, 0)))
    for t in range(TARGET):
        tokens_B1, before_B1N = tokens_BT[:, t : t + 1], longer_BT[:, None, t : t + N]
        here, caches = one(tokens_B1, before_B1N, encoded[t > 0], caches, jnp.int32(t))
        np.testing.assert_allclose(here[:, 0], expected[:, t], atol=2e-5)


def test_dropout_is_applied_where_the_paper_does():
    """On the sums of embeddings and positions of both sides, and on the output of every sub-layer: nowhere else."""
    model = replace(PAPER, dropout=0.5)
    net, mask_BS = EncoderDecoder(model), np.ones((1, SOURCE), bool)

    def forward(params, key):
        batch = {"sources": ids(1, SOURCE, 2), "source_mask": mask_BS, "inputs": ids(1, TARGET, 3)}
        return net.apply({"params": params}, batch, deterministic=False, rngs={"dropout": key}).logits()

    text = str(jax.make_jaxpr(forward)(noisy(PAPER), jax.random.key(0)))
    assert text.count("random_bits[") == 2 + 2 * model.encoder_layers + 3 * model.num_layers


# --- the paper, equation by equation, against plain numpy


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_equation_1_scaled_dot_product_attention():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 1, n, w)).astype(np.float32) for n, w in ((3, 4), (5, 4), (5, 6)))
    expected = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(4)) @ v
    np.testing.assert_allclose(
        attend(*map(jnp.asarray, (q, k, v)), jnp.ones((1, 3, 5), bool)), expected, atol=1e-5
    )


def test_section_3_5_positions_in_both_layouts():
    interleaved, halves = (
        np.asarray(sinusoid(jnp.arange(9)[None], 6, layout))[0] for layout in ("interleaved", "halves")
    )
    for pos in (0, 3, 8):
        for i in range(3):
            angle = pos / 10000 ** (2 * i / 6)
            assert interleaved[pos, 2 * i] == pytest.approx(np.sin(angle), abs=1e-5)
            assert interleaved[pos, 2 * i + 1] == pytest.approx(np.cos(angle), abs=1e-5)
            assert halves[pos, i] == pytest.approx(np.sin(angle), abs=1e-5)
            assert halves[pos, 3 + i] == pytest.approx(np.cos(angle), abs=1e-5)


def by_hand(params, model, source, target):
    """Logits of one pair, written from the paper's sections 3.1 to 3.5 and nothing else."""
    d, h = model.width, model.num_heads
    c = d // h

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def attention(p, x, y, mask):
        heads = []
        for i in range(h):
            part = slice(i * c, (i + 1) * c)
            q, k, v = x @ p["query"][:, part], y @ p["key"][:, part], y @ p["value"][:, part]
            heads.append(softmax(np.where(mask, q @ k.T / np.sqrt(c), -1e30)) @ v)
        return np.concatenate(heads, -1) @ p["output"]

    def ffn(p, x):
        return np.maximum(0, x @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]

    def embed(ids):
        at = np.arange(len(ids))[:, None] / 10000 ** (np.arange(0, d, 2) / d)
        positions = np.stack([np.sin(at), np.cos(at)], -1).reshape(len(ids), d)
        return params["embedding"][ids] * np.sqrt(d) + positions

    x, everything = embed(source), np.ones((1, 1), bool)
    for i in range(model.encoder_layers):
        p = params["encoder"][f"layer_{i}"]
        x = norm(p["attention_norm"], x + attention(p["attention"], x, x, everything))
        x = norm(p["feed_forward_norm"], x + ffn(p["feed_forward"], x))
    y, past = embed(target), np.tril(np.ones((len(target), len(target)), bool))
    for i in range(model.num_layers):
        p = params["decoder"][f"layer_{i}"]
        y = norm(p["attention_norm"], y + attention(p["attention"], y, y, past))
        y = norm(p["cross_attention_norm"], y + attention(p["cross_attention"], y, x, everything))
        y = norm(p["feed_forward_norm"], y + ffn(p["feed_forward"], y))
    return y @ params["embedding"].T


def test_sections_3_1_to_3_5_the_whole_model_by_hand():
    model = replace(PAPER, num_layers=2, encoder_layers=2)
    source, target = np.array([5, 9, 33, 7, 12]), np.array([1, 40, 8, 21])
    ours = logits(model, noisy(model), source[None], np.ones((1, 5), bool), target[None])
    expected = by_hand(jax.tree.map(np.asarray, noisy(model)), model, source, target)
    np.testing.assert_allclose(ours[0], expected, atol=1e-4, rtol=1e-4)


def test_a_label_is_predicted_from_the_mean_without_padding():
    model = replace(PAPER, num_classes=3, tie_embeddings=False)
    params, sources_BS, mask_BS = noisy(model), ids(2, SOURCE, 2), padded_mask()
    net = EncoderDecoder(model).bind({"params": params})
    encoded_BSD = np.asarray(net.encode(sources_BS, mask_BS).encoded_BSD)
    mean_BD = np.stack([encoded_BSD[0].mean(0), encoded_BSD[1, :4].mean(0)])
    readout = net({"inputs": sources_BS, "source_mask": mask_BS})
    np.testing.assert_array_equal(readout.head_DV, params["classifier"])
    np.testing.assert_allclose(readout.x_BTD[:, 0], mean_BD, atol=1e-5)
    np.testing.assert_allclose(readout.logits()[:, 0], mean_BD @ params["classifier"], atol=1e-5)
    empty = net({"inputs": sources_BS[1:], "source_mask": np.zeros((1, SOURCE), bool)})
    assert not empty.logits().any(), "an empty source gives no NaN"


@pytest.mark.parametrize("model", [PAPER, replace(OTHER, biases="everywhere")], ids=["tied", "with a bias"])
def test_readout_times_head_equals_the_logits(model):
    params, batch = noisy(model), (ids(2, SOURCE, 2), padded_mask(), ids(2, TARGET, 3))
    inputs = dict(zip(("sources", "source_mask", "inputs"), batch, strict=True))
    readout = jax.jit(EncoderDecoder(model).apply)({"params": params}, inputs)
    bias_11V = 0 if readout.bias_V is None else readout.bias_V[None, None]
    np.testing.assert_allclose(
        readout.x_BTD @ readout.head_DV + bias_11V, logits(model, params, *batch), atol=1e-4
    )


def test_the_modern_variant_is_one_replace_away():
    shapes = jax.eval_shape(lambda: init_params(MODERN, 0))
    assert "gate" in shapes["decoder"]["layer_0"]["feed_forward"]
    assert "final_norm" in shapes["encoder"]


def test_equals_marian_with_padding():
    torch = pytest.importorskip("torch", reason="optional: requirements-torch.txt")
    pytest.importorskip("transformers", reason="optional: requirements-torch.txt")
    model = replace(PAPER, num_layers=2, encoder_layers=2, biases="all", sinusoid_layout="halves")
    torch.manual_seed(0)
    reference = torch_model(marian.FAMILY, model).eval()
    with torch.no_grad():
        for name, p in reference.named_parameters():
            if "embed_positions" not in name:
                p.add_(0.1 * torch.randn_like(p))  # norms and biases start as ones and zeros
    tensors, shapes = reference.state_dict(), parameter_shapes(model)
    params = from_theirs(marian.weights(model), shapes, lambda name, shape: tensors[name].numpy())
    params = jax.tree.map(jnp.asarray, params)
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        np.shape, jax.eval_shape(lambda: init_params(model, 0))
    )
    sources_BS, mask_BS, tokens_BT = ids(2, SOURCE, 2), padded_mask(), ids(2, TARGET, 3)
    with torch.no_grad():
        expected = reference(
            input_ids=torch.from_numpy(np.asarray(sources_BS, np.int64)),
            attention_mask=torch.from_numpy(np.asarray(mask_BS, np.int64)),
            decoder_input_ids=torch.from_numpy(np.asarray(tokens_BT, np.int64)),
        )
        states = expected.encoder_last_hidden_state.numpy()
    memory = quick_jit(EncoderDecoder(model).bind({"params": params}).encode)(sources_BS, mask_BS)
    real = np.asarray(mask_BS)
    np.testing.assert_allclose(np.asarray(memory.encoded_BSD)[real], states[real], atol=1e-4)
    ours = logits(model, params, sources_BS, mask_BS, tokens_BT)
    np.testing.assert_allclose(ours, expected.logits.numpy(), atol=1e-4)
