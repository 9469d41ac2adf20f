"""Adapters that were trained here, in the layout of `peft`: on the exported base they compute what the run computes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import zerotollm
from tests.functions import forward, init_params
from zerotollm.actions.config import ExportOptions
from zerotollm.actions.export import export
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.errors import UsageError
from zerotollm.interop.huggingface import family_of, write_folder
from zerotollm.interop.peft_folder import write_adapters
from zerotollm.interop.weights import parameter_shapes
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training.config import TrainConfig
from zerotollm.training.lora import init_adapters, merge_adapters

WRITTEN = Path(__file__).parents[1] / "written_before"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The exports of a run with adapters, and of the run that it was initialized from."""
    folder = shutil.copytree(WRITTEN, tmp_path_factory.mktemp("peft"), dirs_exist_ok=True)
    for name, kind in (("decoder", "huggingface"), ("adapters", "peft")):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            run = zerotollm.load(name)
            export(run.experiment, Path(name), ExportOptions(out=f"{name}_out", format=kind))
    return folder


def test_the_files_are_those_of_peft(folder):
    run = zerotollm.load(folder / "adapters")
    config = json.loads((folder / "adapters_out/adapter_config.json").read_text())
    train = run.experiment.train
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == (
        "LORA",
        train.lora_rank,
        train.lora_alpha,
    )
    tensors = load_file(folder / "adapters_out/adapter_model.safetensors")
    prefix = "base_model.model."
    assert {name.removeprefix(prefix).rpartition(".lora_")[0] for name in tensors} == set(
        config["target_modules"]
    )
    pair = run.adapters["layer_0"]["attention"]["query"]
    for letter in "ab":
        name = f"{prefix}model.layers.0.self_attn.q_proj.lora_{letter.upper()}.weight"
        np.testing.assert_array_equal(tensors[name], pair[letter].T)


def test_peft_computes_the_same_logits(folder):
    peft = pytest.importorskip("peft", reason="optional: requirements-torch.txt")
    torch = pytest.importorskip("torch", reason="optional: requirements-torch.txt")
    transformers = pytest.importorskip("transformers", reason="optional: requirements-torch.txt")
    run, base = zerotollm.load(folder / "adapters"), zerotollm.load(folder / "decoder")
    ids = np.random.default_rng(0).integers(0, run.tokenizer.vocab_size, (2, 16))
    net = transformers.AutoModelForCausalLM.from_pretrained(folder / "decoder_out")
    net = peft.PeftModel.from_pretrained(net, folder / "adapters_out").eval()
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids)).logits.numpy()
    ours, before = (forward(x.model_config)(x.params, jnp.asarray(ids)) for x in (run, base))
    assert np.abs(ours - before).max() > 1e-2, "nothing to compare"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_adapters_of_fused_queries_keys_and_values(tmp_path):
    """GPT-2 has one matrix for the three: here values have no adapter, and the others one each."""
    peft = pytest.importorskip("peft", reason="optional: requirements-torch.txt")
    torch = pytest.importorskip("torch", reason="optional: requirements-torch.txt")
    transformers = pytest.importorskip("transformers", reason="optional: requirements-torch.txt")
    model = TransformerConfig(
        num_layers=2, width=16, num_heads=2, norm="layer", position="learned", feed_forward="gelu", biases="all",
        qk_norm=False, tie_embeddings=True,
    )  # fmt: skip
    tokenizer = train_tokenizer(TokenizerConfig("char", 290), ["heaven and earth"])
    model = resolve(model, vocab_size=tokenizer.vocab_size, context=16)
    train = TrainConfig(lora_rank=2, lora_alpha=3.0, lora_targets="query|key|layer_1/feed_forward/up")
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_adapters(init_params(model, 0), train, jax.random.key(0)))
    params, adapters = (
        jax.tree.map(lambda x: np.asarray(noise.normal(0, 0.3, x.shape), np.float32), tree)
        for tree in (parameter_shapes(model), shapes)
    )
    family = write_folder(tmp_path / "base", params, model, tokenizer, "")
    write_adapters(tmp_path / "adapters", adapters, train, family, model, "float32")
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    net = peft.PeftModel.from_pretrained(net, tmp_path / "adapters").eval()
    ids = noise.integers(0, tokenizer.vocab_size, (2, 12))
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids)).logits.numpy()
    ours = forward(model)(merge_adapters(params, adapters, train), jnp.asarray(ids))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_what_peft_cannot_hold_is_refused(folder, tmp_path):
    run, base = zerotollm.load(folder / "adapters"), zerotollm.load(folder / "decoder")
    with pytest.raises(UsageError, match="decoder has no adapters"):
        export(base.experiment, folder / "decoder", ExportOptions(out=str(tmp_path / "out"), format="peft"))
    adapters = {"embedding": run.adapters["layer_0"]["attention"]["query"]}
    family, train = family_of(run.model_config), replace(run.experiment.train, lora_rank=2)
    with pytest.raises(UsageError, match="peft has no adapter of embedding, which"):
        write_adapters(tmp_path / "out", adapters, train, family, run.model_config, "float32")
    assert not (tmp_path / "out").exists()
