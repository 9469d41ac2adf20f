"""The decoder equals the reference implementations of transformers, weight for weight."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import forward, init_params
from zerotollm.interop import qwen3
from zerotollm.interop.torch_model import shift_embeddings, torch_model
from zerotollm.interop.weights import to_theirs
from zerotollm.model.config import TransformerConfig, resolve

torch = pytest.importorskip("torch", reason="optional: requirements-torch.txt")
transformers = pytest.importorskip("transformers", reason="optional: requirements-torch.txt")


def to_state_dict(params, config):
    tensors = {
        name: torch.from_numpy(x) for name, x in to_theirs(params, qwen3.FAMILY.weights(config)).items()
    }
    return {"lm_head.weight": tensors["model.embed_tokens.weight"]} | tensors


def numpy(tensor):
    return jnp.asarray(tensor.detach().numpy())


def randomized(model):
    """Every parameter random: norms start as ones in the reference, which would hide a wrong one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.1 if "norm" in name or "ln" in name else 0.2))
            if "norm" in name or ("ln" in name and name.endswith("weight")):
                p.add_(1.0)
    return model.eval()


@pytest.mark.parametrize(
    ("layers", "kv_heads", "tied", "head_width"), [(1, 4, False, 8), (2, 2, True, 8), (1, 1, False, 16)]
)
def test_decoder_equals_qwen3(layers, kv_heads, tied, head_width):
    config = resolve(
        TransformerConfig(
            num_layers=layers, width=32, num_heads=4, num_kv_heads=kv_heads, head_width=head_width, ff_width=48,
            tie_embeddings=tied, rope_theta=5000.0,
        ),
        vocab_size=64,
        context=32,
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def random(x):  # norms start as ones, which would hide a wrong one
        return rng.normal(x.ndim == 1, 0.1 if x.ndim == 1 else 0.2, x.shape).astype(np.float32)

    params = jax.tree.map(random, jax.eval_shape(lambda: init_params(config, 0)))
    reference = torch_model(qwen3.FAMILY, config).eval()
    reference.load_state_dict(to_state_dict(params, config))  # strict: no weight is left over on either side
    tokens_BT = rng.integers(0, 64, (2, 20))
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens_BT)).logits.numpy()
    ours = forward(config)(params, jnp.asarray(tokens_BT, jnp.int32))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`past_key_values`:FutureWarning")  # its new name is not in older versions
def test_token_shift_equals_a_shifted_embedding():
    config = resolve(
        TransformerConfig(num_layers=1, width=32, num_heads=2, token_shift=3), vocab_size=64, context=32
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    reference = torch_model(qwen3.FAMILY, replace(config, token_shift=0)).eval()
    shift_embeddings(reference, 3)
    weights = to_state_dict(params, config)
    weights["model.embed_tokens.shift_weight"] = torch.from_numpy(params["token_shift"]["weights"])
    reference.load_state_dict(weights)
    tokens_BT = rng.integers(0, 64, (2, 20))
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens_BT)).logits.numpy()
        # A few at first and then one at a time, as `generate` reads them.
        known = reference(torch.from_numpy(tokens_BT[:, :4]), use_cache=True).past_key_values
        for i in range(4, 20):
            last = reference(
                torch.from_numpy(tokens_BT[:, i : i + 1]), past_key_values=known, use_cache=True
            ).logits[:, -1]
    ours = forward(config)(params, jnp.asarray(tokens_BT, jnp.int32))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(ours[:, -1], last.numpy(), atol=1e-4, rtol=1e-4)


def test_layer_norm_gelu_and_learned_positions_equal_gpt2():
    """GPT-2 with its biases at zero: LayerNorm, GELU (tanh), learned positions, tied embeddings."""
    config = resolve(
        TransformerConfig(
            num_layers=2, width=32, num_heads=4, norm="layer", feed_forward="gelu", position="learned",
            qk_norm=False, tie_embeddings=True, norm_epsilon=1e-5,
        ),
        vocab_size=64,
        context=32,
    )  # fmt: skip
    reference = randomized(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
        )
    )
    with torch.no_grad():
        for name, p in reference.named_parameters():
            if name.endswith(("attn.bias", "proj.bias", "fc.bias")):
                p.zero_()
    w = {name: numpy(p) for name, p in reference.state_dict().items()}

    def norm(name):
        return {"scale": w[name + ".weight"], "bias": w[name + ".bias"]}

    params = {
        "embedding": w["transformer.wte.weight"],
        "positions": w["transformer.wpe.weight"],
        "final_norm": norm("transformer.ln_f"),
    }
    for i in range(2):
        at = f"transformer.h.{i}."
        query, key, value = jnp.split(w[at + "attn.c_attn.weight"], 3, axis=1)
        params[f"layer_{i}"] = {
            "attention": {
                "query": query, "key": key, "value": value, "output": w[at + "attn.c_proj.weight"],
            },
            "attention_norm": norm(at + "ln_1"),
            "feed_forward_norm": norm(at + "ln_2"),
            "feed_forward": {"up": w[at + "mlp.c_fc.weight"], "down": w[at + "mlp.c_proj.weight"]},
        }  # fmt: skip
    tokens_BT = np.random.default_rng(0).integers(0, 64, (2, 20))
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens_BT)).logits.numpy()
    ours = forward(config)(params, jnp.asarray(tokens_BT, jnp.int32))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)
