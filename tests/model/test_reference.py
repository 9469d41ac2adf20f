"""The decoder equals the reference implementations of transformers, weight for weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.transformer import Transformer

torch = pytest.importorskip("torch", reason="torch is a development requirement: requirements-dev.txt")
transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")


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


@pytest.mark.parametrize(("kv_heads", "tied", "head_width"), [(4, False, 8), (2, True, 8), (1, False, 16)])
def test_decoder_is_qwen3(kv_heads, tied, head_width):
    config = resolve(
        TransformerConfig(
            num_layers=2, width=32, num_heads=4, num_kv_heads=kv_heads, head_width=head_width, ff_width=48,
            tie_embeddings=tied, rope_theta=5000.0,
        ),
        vocab_size=64,
        context=32,
    )  # fmt: skip
    reference = randomized(
        transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(
                vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=kv_heads, head_dim=head_width, max_position_embeddings=32, hidden_act="silu",
                rms_norm_eps=1e-6, tie_word_embeddings=tied, attention_bias=False,
                rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            )
        )
    )  # fmt: skip
    w = {name: numpy(p) for name, p in reference.state_dict().items()}
    params = {
        "embedding": w["model.embed_tokens.weight"],
        "final_norm": {"scale": w["model.norm.weight"]},
    }
    if not tied:
        params["head"] = w["lm_head.weight"].T
    for i in range(2):
        at = f"model.layers.{i}."
        params[f"layer_{i}"] = {
            "attention": {
                "query": w[at + "self_attn.q_proj.weight"].T,
                "key": w[at + "self_attn.k_proj.weight"].T,
                "value": w[at + "self_attn.v_proj.weight"].T,
                "output": w[at + "self_attn.o_proj.weight"].T,
                "query_norm": {"scale": w[at + "self_attn.q_norm.weight"]},
                "key_norm": {"scale": w[at + "self_attn.k_norm.weight"]},
            },
            "attention_norm": {"scale": w[at + "input_layernorm.weight"]},
            "feed_forward_norm": {"scale": w[at + "post_attention_layernorm.weight"]},
            "feed_forward": {
                "gate": w[at + "mlp.gate_proj.weight"].T,
                "up": w[at + "mlp.up_proj.weight"].T,
                "down": w[at + "mlp.down_proj.weight"].T,
            },
        }
    tokens_BT = np.random.default_rng(0).integers(0, 64, (2, 20))
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens_BT)).logits.numpy()
    ours = jax.jit(Transformer(config).apply)({"params": params}, jnp.asarray(tokens_BT, jnp.int32))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)


def test_layer_norm_gelu_and_learned_positions_are_gpt2s():
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
    ours = Transformer(config).apply({"params": params}, jnp.asarray(tokens_BT, jnp.int32))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)
