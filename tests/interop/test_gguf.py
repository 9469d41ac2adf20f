"""GGUF: every tensor and token comes back from the file, and llama.cpp computes the same probabilities."""

import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from tests.functions import forward, init_params
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.conversations import conversation_encoder
from zerotollm.data.tokens.pretrained import pretrained_tokenizer
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, train_tokenizer
from zerotollm.errors import UsageError
from zerotollm.interop import gguf_file
from zerotollm.interop.chat_template import chat_template
from zerotollm.interop.gguf_file import check_architecture, vocabulary, write_gguf
from zerotollm.interop.huggingface import family_of
from zerotollm.interop.weights import to_theirs
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig, resolve

TEXT = "heaven and <s> </s>\n\n  earth \U0001f600 lighté 12"
LINES = ["heaven and earth and light, waters 1 2 <s> é\n" * 20]
SHAPE = {"num_layers": 2, "width": 32, "num_heads": 4}
MODELS = {
    "qwen2": TransformerConfig(**SHAPE, num_kv_heads=2, biases="qkv", qk_norm=False),
    "qwen3": TransformerConfig(**SHAPE, num_kv_heads=1, head_width=16, tie_embeddings=True),
    "llama": TransformerConfig(**SHAPE, num_kv_heads=2, biases="all", qk_norm=False),
    "gpt2": TransformerConfig(
        **SHAPE, norm="layer", position="learned", feed_forward="gelu", biases="all", qk_norm=False,
        tie_embeddings=True, norm_epsilon=1e-5,
    ),
}  # fmt: skip


class Model(NamedTuple):
    config: TransformerConfig
    params: Params
    tokenizer: AnyTokenizer


def byte_level(**pre_tokenizer) -> AnyTokenizer:
    """A tokenizer of bytes and two merges, as GPT-2 spells them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "he", "Ġhe"])}
    library = Library(models.BPE(vocab=vocabulary, merges=[("h", "e"), ("Ġ", "he")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | pre_tokenizer)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<|end|>"), AddedToken("<|turn|>")])
    fields = json.loads(library.to_str())
    return pretrained_tokenizer(fields, bos_id=None, eos_id=258, pad_id=None, stop_ids=[259], source="here")


def written(name: str, folder: Path, dtype: str = "float32") -> tuple[Model, Path]:
    tokenizer = byte_level() if name == "gpt2" else train_tokenizer(TokenizerConfig("bpe", 300), LINES)
    config = resolve(MODELS[name], vocab_size=tokenizer.vocab_size, context=48)
    noise = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    params = jax.tree.map(lambda x: np.asarray(noise.normal(x.ndim == 1, 0.2, x.shape), np.float32), shapes)
    family, out = family_of(config), folder / f"{name}.gguf"
    assert family.model_type == name
    template = chat_template(tokenizer, escaped=False)
    write_gguf(out, params, config, family, tokenizer, name="a", dtype=dtype, chat_template=template)
    return Model(config, params, tokenizer), out


@pytest.mark.parametrize("name", MODELS)
def test_tensors_and_tokens_come_back(name, tmp_path):
    gguf = pytest.importorskip("gguf", reason="optional: requirements-test.txt")
    (config, params, tokenizer), out = written(name, tmp_path)
    reader = gguf.GGUFReader(out)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config.num_layers)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    theirs = to_theirs(params, family_of(config).weights(config))
    assert len(tensors) == len(theirs)
    for key, x in theirs.items():
        back = tensors[names.get_name(key, (".weight", ".bias"))]
        if "embed_tokens" in key or "wte" in key or "lm_head" in key:
            x = x[: tokenizer.vocab_size]
        elif name == "gpt2" and ".c_" in key and x.ndim == 2:
            back = back.T
        elif name == "llama" and ("q_proj" in key or "k_proj" in key):  # halves of a head alternate there
            heads = config.num_heads if "q_proj" in key else config.num_kv_heads
            by_head = back.reshape(heads, -1, *back.shape[1:])
            back = np.concatenate([by_head[:, 0::2], by_head[:, 1::2]], axis=1).reshape(x.shape)
        np.testing.assert_array_equal(back, x, err_msg=key)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    assert fields["tokenizer.ggml.tokens"] == pieces
    assert fields["tokenizer.chat_template"] == chat_template(tokenizer, escaped=False)
    assert fields[f"{name}.context_length"] == 48
    assert fields[f"{name}.attention.head_count_kv"] == config.num_kv_heads
    types = fields["tokenizer.ggml.token_type"]
    if name == "gpt2":
        assert types == [1] * 258 + [3, 3]
        assert fields["tokenizer.ggml.merges"] == ["h e", "Ġ he"]
        assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (258, 259)
        assert not fields["tokenizer.ggml.add_bos_token"]
    else:
        proto = tokenizer._proto.pieces
        assert types == [piece.type for piece in proto]
        np.testing.assert_array_equal(
            np.float32(fields["tokenizer.ggml.scores"]), np.float32([piece.score for piece in proto])
        )
        ids = [fields[f"tokenizer.ggml.{key}_token_id"] for key in ("padding", "bos", "eos", "unknown")]
        assert ids == [0, 1, 1, 3]
        assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_space_prefix"]) == (
            True,
            False,
        )


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_has_the_same_ids_and_probabilities(name, tmp_path):
    pytest.importorskip("gguf", reason="optional: requirements-test.txt")
    library = pytest.importorskip("xllamacpp", reason="optional: requirements-test.txt")
    (config, params, tokenizer), out = written(name, tmp_path)
    options = library.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel, options.warmup = str(out), 48, 1, False
    options.cpuparams.n_threads = 1
    options.cache_type_k = options.cache_type_v = library.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = library.Server(options)

    def post(path: str, **body):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    messages = [
        {"role": role, "content": text}
        for role, text in (("system", " "), ("user", " 1\n"), ("assistant", "light"), ("user", "é"))
    ]
    prompt = post("/apply-template", messages=messages)["prompt"]
    ids = post("/tokenize", content=prompt, parse_special=True, add_special=True)["tokens"]
    assert ids == conversation_encoder(tokenizer, trained_here=True)(messages).tolist()
    ids = tokenizer.encode(TEXT).tolist()
    assert post("/tokenize", content=TEXT, parse_special=False)["tokens"] == ids
    logits_BTV = forward(config)(params, jnp.asarray([ids]))[..., : tokenizer.vocab_size]
    log_p_TV = np.asarray(jax.nn.log_softmax(logits_BTV)[0])
    assert np.ptp(log_p_TV) > 3, "nothing to compare"
    compared = 0
    for length in range(1, len(ids) + 1):
        answer = post("/completion", prompt=ids[:length], n_predict=1, n_probs=400, temperature=0)
        for token in answer.get("completion_probabilities", []):  # none where the token is half a character
            assert token["id"] == log_p_TV[length - 1].argmax()
            theirs = {entry["id"]: entry["logprob"] for entry in token["top_logprobs"]}
            ours = log_p_TV[length - 1, list(theirs)]
            # GPT-2's GELU is read from a table of float16.
            np.testing.assert_allclose(ours, list(theirs.values()), atol=2e-2 if name == "gpt2" else 1e-4)
            compared += len(theirs)
    assert compared > 1000


def test_short_types_are_for_matrices_and_round(tmp_path):
    gguf = pytest.importorskip("gguf", reason="optional: requirements-test.txt")
    (_, params, _), out = written("qwen2", tmp_path, "bfloat16")
    types = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    assert (
        types["output_norm.weight"].tensor_type.name == types["blk.0.attn_q.bias"].tensor_type.name == "F32"
    )
    tensor = types["blk.0.attn_q.weight"]
    assert (tensor.tensor_type.name, tensor.shape.tolist()) == ("BF16", [32, 32])
    rounded = params["layer_0"]["attention"]["query"].T.astype("bfloat16")
    np.testing.assert_array_equal(tensor.data.view(rounded.dtype), rounded)


def test_a_model_or_tokenizer_that_llama_cpp_reads_differently_is_refused(tmp_path, monkeypatch):
    def refused(kind: str, **options) -> str:
        config = TokenizerConfig(kind, 300 if kind == "bpe" else 280, **{"byte_fallback": True} | options)
        with pytest.raises(UsageError) as caught:
            vocabulary(train_tokenizer(config, LINES))
        return str(caught.value)

    assert "tokenizer.kind is 'unigram' (not 'bpe' or 'char')" in refused("unigram")
    assert "tokenizer.normalization is 'nfc' (not 'identity')" in refused("bpe", normalization="nfc")
    assert "tokenizer.byte_fallback is False" in refused("char", byte_fallback=False)
    with pytest.raises(UsageError, match="byte-level BPE"):
        vocabulary(byte_level(add_prefix_space=True))
    narrower = [("qwen3", "biases", "attention"), ("gpt2", "feed_forward", "relu")]
    narrower += [(name, "rope_factor", 8.0) for name in ("qwen3", "llama", "qwen2")]
    for name, field, value in narrower:
        config = resolve(replace(MODELS[name], **{field: value}), vocab_size=300, context=48)
        with pytest.raises(UsageError, match=rf"model\.{field} is {value!r}"):
            check_architecture(family_of(config), config)
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="gguf is not installed: pip install"):
        written("qwen2", tmp_path)
