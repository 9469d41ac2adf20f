"""export and import-model: a run goes out as a folder of transformers, comes back, and writes the same text."""

import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

import zerotollm
from tests.functions import init_params
from zerotollm import run_directory
from zerotollm.actions.config import EvaluateOptions, ExportOptions, ImportModelOptions
from zerotollm.actions.export import export
from zerotollm.actions.import_model import import_model
from zerotollm.cli import main
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.conversations import chat_parts
from zerotollm.data.tokens.conversations import encode_parts
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, to_json
from zerotollm.interop.folder import read_params
from zerotollm.interop.marian import nearest
from zerotollm.interop.weights import convert_dtype
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training.checkpoints import CheckpointWriter
from zerotollm.training.config import TrainConfig

WORDS = ["heaven", "earth", "light", "<s>", "waters", "1", "day"]
GREEDY = SamplingConfig(prompt="heaven", max_tokens=8, temperature=0.0, beam_size=1)
PAPER = TransformerConfig(
    architecture="encoder-decoder", num_layers=1, width=16, num_heads=2, feed_forward="relu", norm="layer",
    norm_position="post", position="sinusoidal", qk_norm=False, tie_embeddings=True, embedding_scale=True,
)  # fmt: skip


def random_run(folder: Path, model: TransformerConfig, corpus: str) -> Path:
    """A run directory as `train` leaves it, with parameters that were never trained."""
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(WORDS, 40)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    (folder / "pairs.tsv").write_text("\n".join(f"{a}\t{b}" for a, b in pairwise(lines)))
    tokenizer = train_tokenizer(TokenizerConfig("bpe", 300), lines)
    experiment = Experiment(
        name="tiny",
        data=DataConfig(corpus=str(folder / corpus), dir=str(folder / "data"), context=64, batch_size=2),
        tokenizer=TokenizerConfig("bpe", 300),
        model=model,
        train=TrainConfig(steps=2, eval_every=0, sample_every=0, checkpoint_every=0),
        sample=GREEDY,
    )
    run_dir = folder / "tiny"
    run_dir.mkdir()
    tokenizer.save(run_dir / "tokenizer.model")
    (run_dir / "config.json").write_text(to_json(experiment))
    (run_dir / "summary.json").write_text(json.dumps({"steps": 1234, "validation_bpb": 1.98766}))
    resolved = resolve(model, vocab_size=tokenizer.vocab_size, context=64)
    noise = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: np.asarray(noise.normal(x.ndim == 1, 0.3, x.shape), np.float32),
        jax.eval_shape(lambda: init_params(resolved, 0)),
    )
    writer = CheckpointWriter(run_dir / "checkpoints", keep=1)
    writer.save({"params": jax.device_put(params)}, 7, {"validation": {"bpb": 2.5}})
    writer.close()
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    model = TransformerConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1)
    return random_run(tmp_path_factory.mktemp("run"), model, "text.txt")


@pytest.fixture(scope="module")
def exported(run_dir) -> Path:
    out = run_dir.parent / "exported"
    return export(zerotollm.load(run_dir).experiment, run_dir, ExportOptions(out=str(out)))


def test_transformers_loads_it_without_code_of_ours_and_writes_the_same(run_dir, exported):
    torch = pytest.importorskip("torch", reason="optional: requirements-torch.txt")
    transformers = pytest.importorskip("transformers", reason="optional: requirements-torch.txt")
    run = zerotollm.load(run_dir)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    for text in ("heaven and <s> </s>\n\u2581 \U0001f600", "  1 day", "", "a\0<0x41>"):
        ids = run.tokenizer.encode(text).tolist()
        assert tokenizer(text).input_ids == [1, *ids]
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 1, 0)
    ids = torch.tensor([tokenizer("heaven").input_ids])
    drawn = model.generate(ids, max_new_tokens=8, do_sample=False)
    # Their decoder and ours agree on text, not on bytes that are none, which an untrained model writes.
    assert run.tokenizer.decode(drawn[0].numpy()) == run.generate("heaven", max_tokens=8, temperature=0.0)


@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_short_types_load_as_such_and_compute_the_same_within_their_rounding(
    run_dir, tmp_path, dtype, rounding
):
    torch = pytest.importorskip("torch", reason="optional: requirements-torch.txt")
    transformers = pytest.importorskip("transformers", reason="optional: requirements-torch.txt")
    run = zerotollm.load(run_dir)
    out = export(run.experiment, run_dir, ExportOptions(out=str(tmp_path / "out"), dtype=dtype))
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert str(model.dtype) == f"torch.{dtype}"
    query = model.model.layers[0].self_attn.q_proj.weight.detach().float().numpy().T
    np.testing.assert_allclose(query, run.params["layer_0"]["attention"]["query"], rtol=rounding)
    ids_BT = np.array([run.tokenizer.encode("heaven earth day 1 light")])
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids_BT)).logits.float().numpy()
    ours = np.asarray(run.net.apply({"params": run.params}, {"inputs": ids_BT}).logits())
    np.testing.assert_allclose(theirs, ours, atol=8 * rounding * np.abs(ours).max())
    assert f"parameters in {dtype}" in (out / "README.md").read_text()
    with pytest.raises(UsageError, match=r"head holds numbers up to 1e\+06, which float16 cannot hold"):
        convert_dtype({"head": np.float32([1e6])}, "float16")


def test_a_model_trained_on_conversations_takes_their_form_along(run_dir, tmp_path):
    transformers = pytest.importorskip("transformers", reason="optional: requirements-torch.txt")
    experiment, chats = zerotollm.load(run_dir).experiment, shutil.copytree(run_dir, tmp_path / "chats")
    trained = replace(experiment, train=replace(experiment.train, objective="completion"))
    (chats / "config.json").write_text(to_json(trained))
    run = zerotollm.load(chats)
    out = export(run.experiment, chats, ExportOptions(out=str(tmp_path / "out")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    back = import_model(experiment, tmp_path / "back", ImportModelOptions(folder=str(out)))
    messages = [
        {"role": "system", "content": " "},
        {"role": "user", "content": " heaven and <s> </s>\n\u2581 <pad><unk>"},
        {"role": "assistant", "content": "day: <0x41> \U0001f600"},
        {"role": "user", "content": "light </s"},
    ]
    for n in (2, 4):
        expected = run.encode_conversation(messages[:n]).tolist()
        theirs = tokenizer.apply_chat_template(messages[:n], add_generation_prompt=True)["input_ids"]
        assert theirs == expected
        assert back.encode_conversation(messages[:n]).tolist() == expected
    learned = encode_parts(run.tokenizer, chat_parts(messages[:3])).tolist()
    assert tokenizer.apply_chat_template(messages[:3])["input_ids"] == learned
    assert back.chats
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    code = (out / "README.md").read_text().partition("ids = ")[2].partition("\nprint")[0]
    assert code.startswith("tokenizer.apply_chat_template(")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert model.generate(**ids, max_new_tokens=3).shape[1] <= ids["input_ids"].shape[1] + 3
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 1
    with pytest.raises(UsageError, match="the roles are system, user and assistant"):
        back.encode_conversation([{"role": "tool", "content": "1"}])


def test_the_card_has_the_numbers_of_the_summary(exported):
    card = (exported / "README.md").read_text()
    assert "| optimizer steps | 1,234 |" in card
    assert "| bits per byte on validation | 1.9877 |" in card
    assert "| bits per byte on validation at that step | 2.5000 |" in card
    assert "Qwen3" in card


def test_it_comes_back_as_a_run_that_writes_and_is_evaluated(run_dir, exported, tmp_path, monkeypatch):
    from zerotollm.actions.evaluate import evaluate

    ours, host = zerotollm.load(run_dir), []
    monkeypatch.setattr(
        "zerotollm.actions.import_model.read_params",
        lambda *arguments: host.append(read_params(*arguments)) or host[0],
    )
    back = import_model(ours.experiment, tmp_path / "back", ImportModelOptions(folder=str(exported)))
    assert not jax.tree.leaves(host), "a large model would be in memory twice"
    assert back.model_config == ours.model_config
    jax.tree.map(np.testing.assert_array_equal, back.params, ours.params)
    for text in ("heaven and <s> </s>\n\u2581 \U0001f600", "  1 day"):
        np.testing.assert_array_equal(back.tokenizer.encode(text), ours.tokenizer.encode(text))
    assert back.generate("heaven", max_tokens=8) == ours.generate("heaven", max_tokens=8)
    measured = evaluate(back.experiment, tmp_path / "back", EvaluateOptions())
    assert measured["tokens"] > 100
    again = export(back.experiment, tmp_path / "back", ExportOptions(out=str(tmp_path / "again")))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (exported / name).read_bytes()
    assert json.loads((again / "tokenizer_config.json").read_text())["split_special_tokens"]
    assert "has no final numbers" in (again / "README.md").read_text()


@pytest.mark.parametrize("ended", [False, True])
def test_what_another_process_writes_meanwhile_is_left_alone(run_dir, exported, tmp_path, monkeypatch, ended):
    experiment, other, real = zerotollm.load(run_dir).experiment, tmp_path / "other", read_params
    with ExitStack() as lock:

        def meanwhile(*arguments):
            with ExitStack() as until_ended:
                (until_ended if ended else lock).enter_context(run_directory.locked(other))
                (other / "config.json").write_text("theirs")
            return real(*arguments)

        monkeypatch.setattr("zerotollm.actions.import_model.read_params", meanwhile)
        error, says = (UsageError, "is not empty") if ended else (RunError, "is being written by process")
        with pytest.raises(error, match=says):
            import_model(experiment, other, ImportModelOptions(folder=str(exported)))
        assert (other / "config.json").read_text() == "theirs"


def test_an_import_that_fails_leaves_nothing(run_dir, exported, tmp_path, monkeypatch):
    def full(writer, items, step, notes):
        raise RunError("the disk is full")

    monkeypatch.setattr(CheckpointWriter, "save", full)
    with pytest.raises(RunError, match="is full"):
        import_model(
            zerotollm.load(run_dir).experiment, tmp_path / "new", ImportModelOptions(folder=str(exported))
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_an_imported_model_is_trained_on(run_dir, exported, tmp_path):
    from zerotollm.actions.train import train

    first = zerotollm.load(run_dir)
    back = import_model(first.experiment, tmp_path / "back", ImportModelOptions(folder=str(exported)))
    experiment = replace(
        back.experiment, train=replace(first.experiment.train, start_from=str(tmp_path / "back"))
    )
    train(experiment, tmp_path / "tuned")
    tuned = zerotollm.load(tmp_path / "tuned")
    assert tuned.tokenizer == back.tokenizer
    assert tuned.params["embedding"].shape == back.params["embedding"].shape
    assert not np.array_equal(tuned.params["embedding"], back.params["embedding"])
    with pytest.raises(UsageError, match=r"pretrained .* train\.start_from"):
        train(replace(back.experiment, name="other"), tmp_path / "other")


@pytest.mark.slow
def test_an_encoder_decoder_goes_out_as_marian_and_comes_back(tmp_path):
    torch = pytest.importorskip("torch", reason="optional: requirements-torch.txt")
    transformers = pytest.importorskip("transformers", reason="optional: requirements-torch.txt")
    run_dir = random_run(tmp_path, nearest(PAPER), "pairs.tsv")
    run = zerotollm.load(run_dir)
    out = export(run.experiment, run_dir, ExportOptions(out=str(tmp_path / "out")))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    texts = [" heaven and <s>\n", "1 day\u2581"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    drawn = model.generate(**batch, max_new_tokens=8, do_sample=False)
    theirs = [run.tokenizer.decode(row.numpy()).strip() for row in drawn]
    back = import_model(run.experiment, tmp_path / "back", ImportModelOptions(folder=str(out)))
    assert back.model_config.biases == "everywhere"
    for text, other in zip(texts, theirs, strict=True):
        (ours,), (again,) = run.translate([text]), back.translate([text])
        assert ours[0].text == again[0].text
        assert ours[0].score == pytest.approx(again[0].score, abs=1e-4)
        length = min(len(other), len(ours[0].text))
        assert other[:length] == ours[0].text[:length], "one of them may be stopped earlier"
    assert torch.equal(batch.input_ids[1, -1:], torch.tensor([2])) or batch.input_ids[1, -1] == 0


def test_what_is_in_the_way_is_said_in_one_line(run_dir, exported, tmp_path, capsys, monkeypatch):
    root = Path(__file__).parents[2] / "experiments"

    def launch(*words) -> str:
        assert main([str(word) for word in words], root) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "give --out" in launch("export", "--run-dir", run_dir)
    assert "exists already and is not empty" in launch("export", "--run-dir", run_dir, "--out", exported)
    base = ("--experiment", "base", "import-model")
    assert "give --folder" in launch(*base, "--run-dir", tmp_path / "x")
    assert re.search(r"runs/base is the run directory of base itself", launch(*base, "--folder", exported))
    assert "is not empty" in launch(*base, "--folder", exported, "--run-dir", run_dir)
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert "is a GGUF file" in launch(*base, "--folder", tmp_path / "model.gguf", "--run-dir", tmp_path / "x")
    assert "is a GGUF file" in launch("--experiment", "base", "--init-from", tmp_path / "model.gguf")
    assert "is no folder" in launch(*base, "--folder", tmp_path / "y", "--run-dir", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert "add --experiment" in launch("import-model", "--folder", exported, "--run-dir", tmp_path / "x")


def test_plan_reads_the_run_directory_where_no_experiment_is_named(run_dir, capsys):
    root = Path(__file__).parents[2] / "experiments"
    assert main(["plan", "--run-dir", str(run_dir), "--device", "rtx2080"], root) == 0
    assert f"{zerotollm.load(run_dir).num_parameters:,}" in capsys.readouterr().out
