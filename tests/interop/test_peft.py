"""Adapters that were trained here, in the layout of `peft`: on the exported base they compute what the run computes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import zerotollm
from tests.functions import forward
from zerotollm.actions.config import ExportOptions
from zerotollm.actions.export import export
from zerotollm.errors import UsageError
from zerotollm.interop.huggingface import family_of
from zerotollm.interop.peft_folder import write_adapters

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
    peft = pytest.importorskip("peft", reason="see requirements-dev.txt")
    torch = pytest.importorskip("torch", reason="see requirements-dev.txt")
    transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
    run, base = zerotollm.load(folder / "adapters"), zerotollm.load(folder / "decoder")
    ids = np.random.default_rng(0).integers(0, run.tokenizer.vocab_size, (2, 16))
    net = transformers.AutoModelForCausalLM.from_pretrained(folder / "decoder_out")
    net = peft.PeftModel.from_pretrained(net, folder / "adapters_out").eval()
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids)).logits.numpy()
    ours, before = (forward(x.model_config)(x.params, jnp.asarray(ids)) for x in (run, base))
    assert np.abs(ours - before).max() > 1e-2, "nothing to compare"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_what_peft_cannot_hold_is_refused(folder, tmp_path):
    run, base = zerotollm.load(folder / "adapters"), zerotollm.load(folder / "decoder")
    with pytest.raises(UsageError, match="decoder has no adapters"):
        export(base.experiment, folder / "decoder", ExportOptions(out=str(tmp_path / "out"), format="peft"))
    adapters = {"embedding": run.adapters["layer_0"]["attention"]["query"]}
    family, train = family_of(run.model_config), replace(run.experiment.train, lora_rank=2)
    with pytest.raises(UsageError, match="peft has no adapter of embedding in Qwen3"):
        write_adapters(tmp_path / "out", adapters, train, family, run.model_config, "float32")
    assert not (tmp_path / "out").exists()
