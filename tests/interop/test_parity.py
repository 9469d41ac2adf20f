"""Models that transformers initialized at random, imported and exported again: logits, greedy text and every weight."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import forward, whole_characters
from zerotollm.data.tokens.pretrained import pretrained_tokenizer
from zerotollm.decoding.beam import beam_search, hypotheses
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.sample import generate
from zerotollm.interop.folder import read_model, read_params, read_tokenizer
from zerotollm.interop.huggingface import write_folder
from zerotollm.model.build import build_net

torch = pytest.importorskip("torch", reason="optional: requirements-torch.txt")
transformers = pytest.importorskip("transformers", reason="optional: requirements-torch.txt")

SPECIAL = "<|end|>"
V, NEW = 320, 64
LLAMA = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 96, "bos_token_id": 256, "eos_token_id": 256,
}  # fmt: skip
GPT2 = {
    "vocab_size": V, "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 256,
    "eos_token_id": 256, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0,
}  # fmt: skip
MARIAN = {
    "vocab_size": V, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 96,
    "pad_token_id": 257, "decoder_start_token_id": 257, "eos_token_id": 256, "forced_eos_token_id": None,
    "dropout": 0.0,
}  # fmt: skip


def theta(number):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": number}}


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}  # fmt: skip
"""Its waves are of every kind: kept, stretched in part and in full."""
SMOLLM2 = {
    "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    "is_llama_config": True, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "pretraining_tp": 1, "mlp_bias": False,
}  # fmt: skip
"""The fields of SmolLM2-135M's config.json, with another width of a head."""
EXPORTED_AS = {"Mistral": "Llama"}
"""Families whose plain models are also those of an earlier one."""


# Family: configurations, of which the first is looked at in every run of the tests.
CASES = {
    "Qwen3": [
        {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True, **theta(5e3)},
        {"num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": False, **theta(1e6)},
        {"num_key_value_heads": 1, "head_dim": 8, "attention_bias": True, "rms_norm_eps": 1e-3},
    ],
    "Llama": [
        {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, **theta(5e5)},
        {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
        {"num_key_value_heads": 4, "attention_bias": True},
        {"mlp_bias": True, "tie_word_embeddings": True},
        {},
        {"head_dim": 32, "rope_parameters": LLAMA3},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}},
        SMOLLM2,
    ],
    "Mistral": [
        {"num_key_value_heads": 2, "sliding_window": 20},
        {"head_dim": 16, "num_key_value_heads": 4, "sliding_window": None, **theta(1e6)},
    ],
    "SmolLM3": [
        {
            "num_hidden_layers": 4, "num_key_value_heads": 2, "no_rope_layer_interval": 2, "pad_token_id": None,
            **theta(100.0),
        },
        {"num_hidden_layers": 5, "mlp_bias": True, "tie_word_embeddings": False, "pad_token_id": None},
        {"no_rope_layers": [1, 1], "pad_token_id": None},
    ],
    "Qwen2": [
        {"num_key_value_heads": 2, "tie_word_embeddings": True, **theta(1e6)},
        {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
        {"num_key_value_heads": 4, "tie_word_embeddings": False, **theta(3e4)},
    ],
    "GPT2": [
        {},
        {"n_inner": 48, "tie_word_embeddings": False, "activation_function": "relu"},
        {"activation_function": "swish", "layer_norm_epsilon": 1e-3},
        {"activation_function": "gelu_pytorch_tanh", "n_head": 2},
    ],
    "Marian": [
        {"activation_function": "swish", "scale_embedding": True},
        {"activation_function": "relu", "encoder_layers": 1},
        {"activation_function": "gelu_new", "decoder_layers": 1, "scale_embedding": True},
    ],
}  # fmt: skip


def cases(quick):
    """All of them, those that `quick` does not name as slow ones."""
    return pytest.mark.parametrize(
        ("family", "changes"),
        [
            pytest.param(family, changes, id=name, marks=[] if quick(name) else [pytest.mark.slow])
            for family, variants in CASES.items()
            for number, changes in enumerate(variants)
            for name in [f"{family}-{number}"]
        ],
    )


every_case = cases(lambda name: name.endswith("-0"))
every_greedy_case = cases(lambda name: name == "Qwen2-0")  # the others decode by the same program


def byte_tokenizer():
    """One token for each byte, as GPT-2 writes them, and two special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(SPECIAL), AddedToken("<|pad|>")])
    return tokenizer


def theirs(family, changes):
    """A model with every parameter random: norms and biases start as ones and zeros, which would hide a wrong one."""
    base = {"GPT2": GPT2, "Marian": MARIAN}.get(family, LLAMA)
    config = getattr(transformers, f"{family}Config")(**{**base, **changes})
    name = {"GPT2": "GPT2LMHeadModel", "Marian": "MarianMTModel"}.get(family, f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" not in name:
                p.copy_((p.ndim == 1 and name.endswith("weight")) + 0.2 * torch.randn_like(p))
        if family == "Marian":
            model.final_logits_bias.normal_()
            model.final_logits_bias[0, 256] = -100  # or it would end
    return model


def talkative(model):
    """Where a token comes from its embedding alone, a random model says one again and again: positions must tell."""
    with torch.no_grad():
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias[0, :256] *= 0.01
            for name, p in model.named_parameters():
                if any(part in name for part in ("shared", "out_proj", "fc2")):
                    p.mul_(0.05)
    return model


def saved(model, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def inputs(pair):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (2, 20))
    if not pair:
        return {"input_ids": ids}
    sources = rng.integers(0, 256, (2, 9))
    sources[1, 5:] = 257
    return {"input_ids": sources, "attention_mask": sources != 257, "decoder_input_ids": ids}


def their_logits(model, batch):
    with torch.no_grad():
        return model(
            **{name: torch.from_numpy(np.asarray(x, np.int64)) for name, x in batch.items()}
        ).logits.numpy()


def our_logits(config, params, batch):
    if config.architecture == "encoder-decoder":
        arguments = batch["input_ids"], batch["attention_mask"], batch["decoder_input_ids"]
    else:
        arguments = (batch["input_ids"],)
    return forward(config)(params, *map(jnp.asarray, arguments))


def their_greedy(model, batch):
    given = {
        name: torch.from_numpy(np.asarray(x, np.int64)) for name, x in batch.items() if "decoder" not in name
    }
    drawn = model.generate(
        **{"attention_mask": torch.ones_like(given["input_ids"])} | given,
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, num_beams=1, pad_token_id=257,
        suppress_tokens=[256, 257, *range(258, V)],
    )  # fmt: skip
    return drawn[:, -NEW:].numpy()


def our_greedy(config, params, tokenizer, batch):
    if config.architecture != "encoder-decoder":
        rows = generate(
            params, build_net(config), list(batch["input_ids"]), SamplingConfig(temperature=0.0, max_tokens=NEW),
            stop_ids=(), utf8=whole_characters(256),
        )  # fmt: skip
        return np.stack(rows)
    ids, scores = beam_search(
        params, jnp.asarray(batch["input_ids"], jnp.int32), jnp.asarray(batch["attention_mask"]),
        jnp.full(2, NEW + 1), jnp.float32(0), net=build_net(config), beam=1, slots=NEW + 1,
        next_state_SV=whole_characters(257).next_state_SV, special=(257, 257, 256),
    )  # fmt: skip
    return np.stack([row[0].ids for row in hypotheses(ids, scores, eos=256)])


@every_case
def test_logits_and_weights_are_the_same_in_both_directions(family, changes, tmp_path):
    reference, pair = theirs(family, changes), family == "Marian"
    folder = saved(reference, tmp_path / "theirs")
    kind, file, config = read_model(folder)
    params, tokenizer = read_params(folder, kind, config), read_tokenizer(folder, kind, file, config)
    batch = inputs(pair)
    expected, ours = their_logits(reference, batch), our_logits(config, params, batch)
    assert np.abs(expected).max() > 1, "nothing to compare"
    np.testing.assert_allclose(ours, expected, atol=1e-4)

    exported = EXPORTED_AS.get(family, family)
    if family == "SmolLM3" and not config.nope_every:
        exported = "Llama"
    assert write_folder(tmp_path / "ours", params, config, tokenizer, "").architecture.startswith(exported)
    auto = transformers.AutoModelForSeq2SeqLM if pair else transformers.AutoModelForCausalLM
    back, about = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    assert type(back).__name__ == kind.architecture.replace(family, exported)
    weights = reference.state_dict()
    assert back.state_dict().keys() == weights.keys()
    for name, x in back.state_dict().items():
        torch.testing.assert_close(x, weights[name], rtol=0, atol=0)
    # Not exactly: the same function may have gone by another name.
    np.testing.assert_allclose(their_logits(back.eval(), batch), expected, atol=1e-5)


@every_greedy_case
def test_greedy_text_is_the_same(family, changes, tmp_path):
    reference = talkative(theirs(family, changes))
    folder = saved(reference, tmp_path)
    kind, file, config = read_model(folder)
    params, tokenizer = read_params(folder, kind, config), read_tokenizer(folder, kind, file, config)
    if config.max_length < 20 + NEW:
        pytest.skip("the text is longer than the window, and transformers continues beyond it")
    batch = inputs(family == "Marian")
    greedy = our_greedy(config, params, tokenizer, batch)
    assert len(np.unique(greedy)) > 3, "nothing to compare"
    np.testing.assert_array_equal(greedy, their_greedy(reference, batch))


@pytest.mark.parametrize("kind", ["sharded", "float16", "bfloat16", "without the head"])
def test_every_way_that_a_folder_is_saved(kind, tmp_path):
    if kind == "without the head":
        reference = theirs("GPT2", {})
    else:
        reference = theirs("Qwen3", {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True})
    if kind in ("float16", "bfloat16"):
        reference = reference.to(getattr(torch, kind))
    if kind == "without the head":
        folder = saved(reference.transformer, tmp_path)
    else:
        folder = saved(reference, tmp_path, **({"max_shard_size": "20KB"} if kind == "sharded" else {}))
    assert (folder / "model.safetensors.index.json").exists() == (kind == "sharded")
    family, _, config = read_model(folder)
    params = read_params(folder, family, config)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
    names = {"embedding": reference.get_input_embeddings().weight}
    if kind != "without the head":
        layer = reference.model.layers[1]
        names |= {"query": layer.self_attn.q_proj.weight.T, "down": layer.mlp.down_proj.weight.T}
    ours = (
        {"embedding": params["embedding"]}
        | params["layer_1"]["attention"]
        | params["layer_1"]["feed_forward"]
    )
    for name, x in names.items():
        np.testing.assert_array_equal(ours[name], x.detach().float().numpy())


def test_the_tokenizer_of_a_checkpoint_reads_as_it_does_there(tmp_path):
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = partial(pretrained_tokenizer, json.loads((tmp_path / "tokenizer.json").read_text()), source="it")
    tokenizer = ours(bos_id=None, eos_id=256, pad_id=257)
    assert (tokenizer.bos_id, tokenizer.stop_id, tokenizer.pad_id, tokenizer.vocab_size) == (
        256,
        256,
        257,
        258,
    )
    for text in ("In the beginning", "e\u0301 \U0001f600\0\n", ""):
        ids = tokenizer.encode(text)
        assert ids.tolist() == reference.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    assert 256 not in tokenizer.encode(SPECIAL)
    assert tokenizer.decode([256, *tokenizer.encode("a")]) == "a"
