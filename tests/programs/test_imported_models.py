"""Models that transformers initialized at random, imported from a folder: each program computes what the run does."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch", reason="optional: requirements-torch.txt")
pytest.importorskip("transformers", reason="optional: requirements-torch.txt")

import zerotollm
from tests.functions import forward
from tests.imported_tokenizers import imported_tokenizer
from tests.interop.test_parity import theirs
from tests.programs.test_c_program import FAST, build, drive
from tests.programs.test_c_program import run as run_c
from tests.programs.test_numpy_program import run_program
from zerotollm.actions.config import ImportModelOptions
from zerotollm.actions.import_model import import_model
from zerotollm.data.config import DataConfig
from zerotollm.experiment import Experiment

TEXT = "In the beginning <think> it's 123\n</s> \u2581 caf\u00e9 cafe\u0301"
PROMPT, TOKENS = "In the beginning", 40
KV = {"num_key_value_heads": 2}
FOLDERS = {
    "GPT2": ("gpt2", {}),
    "Llama": ("llama3", {**KV, "head_dim": 16}),
    "Llama-2": ("llama2", {}),
    "SmolLM2": ("smollm", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "Qwen2": ("qwen", KV),
    "Qwen3": ("qwen", {**KV, "head_dim": 16}),
    "SmolLM3": ("llama3", {"num_hidden_layers": 4, **KV, "no_rope_layer_interval": 2, "pad_token_id": None}),
    "Mistral": ("mistral", {**KV, "sliding_window": None}),
    "Mistral-NeMo": ("tekken", {"head_dim": 16, "num_key_value_heads": 4, "sliding_window": None}),
}
"""The kind of tokenizer, and fields of config.json."""
FAMILIES = {"Llama-2": "Llama", "SmolLM2": "Llama", "Mistral-NeMo": "Mistral"}


@pytest.fixture(scope="module", params=FOLDERS)
def run(request, tmp_path_factory) -> zerotollm.ExplainableRun:
    """An imported model, in a run directory."""
    (kind, changes), folder = FOLDERS[request.param], tmp_path_factory.mktemp("imported")
    tokenizer = imported_tokenizer(kind)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "vocab_size": 640}
    model = theirs(FAMILIES.get(request.param, request.param), changes | ids)
    model.save_pretrained(folder / "theirs")
    (folder / "theirs/tokenizer.json").write_text(json.dumps(tokenizer.tokenizer_json), encoding="utf-8")
    (folder / "text.txt").write_text("\n\n".join(f"{TEXT} {n}" for n in range(300)), encoding="utf-8")
    data = DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "data"), context=32)
    import_model(Experiment(data=data), folder / "run", ImportModelOptions(folder=str(folder / "theirs")))
    return zerotollm.load(folder / "run")


def ours(run: zerotollm.ExplainableRun, ids: list[int]) -> np.ndarray:
    return np.asarray(forward(run.model_config)(run.params, np.array([ids]))[0])


def test_the_numpy_program_is_the_imported_model(run, tmp_path):
    out = run.export(tmp_path / "out", format="numpy").path
    assert len((out / "model.py").read_text(encoding="utf-8").splitlines()) <= 250
    ids = run.tokenizer.encode(TEXT).tolist()
    result = run_program(out, PROMPT, TEXT, ids, [], TOKENS)
    assert result["ids"] == ids
    np.testing.assert_allclose(result["logits"], ours(run, ids), atol=1e-4)
    assert PROMPT + result["text"] == run.generate(PROMPT, max_tokens=TOKENS, temperature=0.0)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler named cc")
def test_the_c_program_is_the_imported_model(run, tmp_path):
    out = run.export(tmp_path / "out", format="c").path
    assert len((out / "model.c").read_text(encoding="utf-8").splitlines()) <= 600
    build(out, FAST, run.model_config)
    ids = run.tokenizer.encode(TEXT).tolist()
    logits_NV, _, (tokens,) = drive(out, [TEXT], [*range(1, len(ids) + 1)], ids=ids)
    assert tokens == ids
    np.testing.assert_allclose(logits_NV, ours(run, ids)[:, : run.tokenizer.vocab_size], atol=1e-4)
    options = ["--tokens", str(TOKENS), "--temperature", "0"]
    expected = run.generate(PROMPT, max_tokens=TOKENS, temperature=0.0)
    assert run_c(out, PROMPT, *options).stdout.decode() == expected + "\n"


@pytest.mark.parametrize("run", ["Qwen3"], indirect=True)
def test_the_page_of_an_imported_model_compares_8_bits_with_float32(run, tmp_path):
    page = run.export(tmp_path / "page.html", format="html").path.read_text(encoding="utf-8")
    data = json.loads(
        page.partition('<script type="application/json" id="model">')[2].partition("</script>")[0]
    )
    assert data["agreement"]["positions"] > 100
    assert data["step"] == 0
    assert data["vocabulary"]["kind"] == "merges"
