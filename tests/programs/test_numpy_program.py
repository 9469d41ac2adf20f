"""The exported NumPy program computes and writes what the model does, where nothing but NumPy can be imported."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.functions import forward, init_params
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import Tokenizer, train_tokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import generate_texts
from zerotollm.decoding.translate import translate_texts
from zerotollm.model.build import Params, build_net
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.programs.numpy_program import write_numpy

TEXT = "heaven and <s> </s>\n\n  earth \U0001f600 \u2581e\u0301 lighté a\0<0x41>  12"
LINES = ["heaven and earth and light, waters 1 2 <s> é\n" * 20]
SHAPE = {"num_layers": 2, "width": 32, "num_heads": 4}
PAIRS = {**SHAPE, "architecture": "encoder-decoder", "encoder_layers": 1}
MODELS = {
    "qwen2": TransformerConfig(**SHAPE, num_kv_heads=2, biases="qkv", qk_norm=False),
    "qwen3": TransformerConfig(**SHAPE, num_kv_heads=1, head_width=16, tie_embeddings=True),
    "llama": TransformerConfig(
        **SHAPE, biases="all", qk_norm=False, rope_factor=2.0, rope_original_length=16, rope_theta=100.0
    ),
    "gpt2": TransformerConfig(
        **SHAPE, norm="layer", position="learned", feed_forward="gelu", biases="all", qk_norm=False,
        tie_embeddings=True, norm_epsilon=1e-5,
    ),
    "smollm3": TransformerConfig(**SHAPE, qk_norm=False, nope_every=2, rope_factor=2.0),
    "own": TransformerConfig(
        **SHAPE, token_shift=3, embedding_scale=True, key_width=6, logit_soft_cap=5.0, feed_forward="relu2",
        norm_position="post",
    ),
    "sinusoidal": TransformerConfig(**SHAPE, position="sinusoidal", sinusoid_layout="halves", feed_forward="silu"),
    "paper": TransformerConfig(
        **PAIRS, feed_forward="relu", norm="layer", norm_position="post", position="sinusoidal", qk_norm=False,
        tie_embeddings=True, embedding_scale=True, biases="everywhere",
    ),
    "pairs": TransformerConfig(**PAIRS, num_kv_heads=2, cross_rope=True, token_shift=2),
    "pairs_learned": TransformerConfig(**PAIRS, position="learned", biases="feed_forward"),
    "pairs_rope": TransformerConfig(**PAIRS),
}  # fmt: skip
TOKENIZERS = {
    "own": TokenizerConfig("unigram", 280, normalization="nfc"),
    "sinusoidal": TokenizerConfig("char", 40, byte_fallback=False),
    "smollm3": TokenizerConfig("unigram", 27, byte_fallback=False),
    "llama": TokenizerConfig("bpe", 45, byte_fallback=False),
}
PROMPT = "light and"
CONTEXT, TOKENS = 24, 30  # more than the context holds
DRIVER = """
import json, sys
from importlib.machinery import PathFinder
from pathlib import Path

import numpy

class Closed:
    # The standard library and NumPy alone.
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in sys.stdlib_module_names and root not in ("numpy", "model"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Closed())
sys.path.insert(0, sys.argv[1])
import model

w, vocabulary = model.load(Path(sys.argv[1]))
prompt, text, ids, source, tokens = json.loads(sys.argv[2])
start = model.new_cache(w, source) if source else model.new_cache()
parts = [model.forward(w, ids[:5], start)] + [model.forward(w, [i], start) for i in ids[5:]]
new = list(model.generate(w, vocabulary, prompt, tokens))
print(json.dumps({
    "ids": model.encode(vocabulary, text), "logits": numpy.concatenate(parts).tolist(),
    "text": model.decode(vocabulary, new),
}))
"""


def random_model(name: str) -> tuple[TransformerConfig, Params, Tokenizer]:
    tokenizer = train_tokenizer(TOKENIZERS.get(name, TokenizerConfig("bpe", 300)), LINES)
    config = resolve(MODELS[name], vocab_size=tokenizer.vocab_size, context=CONTEXT)
    noise = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    params = jax.tree.map(lambda x: np.asarray(noise.normal(x.ndim == 1, 0.2, x.shape), np.float32), shapes)
    return config, params, tokenizer


def run_program(folder: Path, *arguments: object) -> dict:
    command = [sys.executable, "-c", DRIVER, str(folder), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_and_writes_what_the_model_does(name, tmp_path):
    config, params, tokenizer = random_model(name)
    write_numpy(tmp_path / "out", params, config, tokenizer, title='a """ title')
    source_code = (tmp_path / "out" / "model.py").read_text()
    assert len(source_code.splitlines()) <= 250
    compile(source_code, "model.py", "exec")
    draw = np.random.default_rng(2)
    ids_BT = draw.integers(4, tokenizer.vocab_size, (1, 12))
    source_BS = draw.integers(4, tokenizer.vocab_size, (1, 7)) if config.encoder_layers else None
    sources = [] if source_BS is None else source_BS[0].tolist()
    theirs = run_program(tmp_path / "out", PROMPT, TEXT, ids_BT[0].tolist(), sources, TOKENS)
    assert theirs["ids"] == tokenizer.encode(TEXT).tolist()
    inputs = (ids_BT,) if source_BS is None else (source_BS, source_BS >= 0, ids_BT)
    np.testing.assert_allclose(theirs["logits"], forward(config)(params, *inputs)[0], atol=1e-4)
    greedy, net = SamplingConfig(max_tokens=TOKENS, temperature=0.0, beam_size=1), build_net(config)
    if config.encoder_layers:
        ((ours,),) = translate_texts(params, net, tokenizer, [PROMPT], greedy)
        assert theirs["text"].strip() == ours.text
    else:
        (ours,) = generate_texts(params, net, tokenizer, [PROMPT], greedy)
        assert PROMPT + theirs["text"] == ours
