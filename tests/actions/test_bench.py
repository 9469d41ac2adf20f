"""bench measures a tiny experiment, writes the numbers that it shows, and changes no other file."""

import json
import multiprocessing
from dataclasses import replace
from importlib.util import find_spec

import jax
import pytest

from experiments.base import experiment as base
from tests.functions import init_params
from zerotollm.actions.bench import bench
from zerotollm.actions.config import BenchOptions
from zerotollm.components import dataset_of
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.interop import qwen3
from zerotollm.interop.family import check
from zerotollm.interop.torch_model import decoder_family, torch_model
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.session.timed_jax import jax_side
from zerotollm.session.timed_sides import timed
from zerotollm.session.timed_torch import torch_optimizers
from zerotollm.training.config import OptimizerConfig, TrainConfig

QUICK = BenchOptions(rounds=2, seconds=0.01)
RATES = {"train", "decode 1", "decode 16", "decode 64", "prefill"}


@pytest.fixture
def tiny(tmp_path) -> Experiment:
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"Line {n} of the sea and the sky, the ship and the star." for n in range(200))
    )
    return Experiment(
        data=DataConfig(
            corpus=str(text), dir=str(tmp_path / "cache"), documents="file", context=12, batch_size=4
        ),
        tokenizer=TokenizerConfig(kind="char", byte_fallback=False),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2),
        optimizer=OptimizerConfig(block=0),
        train=TrainConfig(steps=2, micro_batches=2),
    )


def positive(value) -> bool:
    """Return whether every number in nested dicts is above 0."""
    return all(map(positive, value.values())) if isinstance(value, dict) else value > 0


@pytest.mark.parametrize("kind", ["labels", "adapters"])
def test_what_is_measured_is_what_is_trained(tiny, tmp_path, kind):
    """With labels the head has a row a label; with adapters the merged model writes."""
    if kind == "labels":
        rows = [{"text": f"line {n} of the sea", "label": "abc"[n % 3]} for n in range(60)]
        (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = replace(tiny.data, corpus=str(tmp_path / "labels.jsonl"), documents="auto", context=32)
        experiment = replace(tiny, data=data, train=replace(tiny.train, objective="label"))
    else:
        begun = tmp_path / "begun"
        begun.mkdir()
        dataset_of(tiny).tokenizer.save(begun / "tokenizer.model")
        experiment = replace(tiny, train=replace(tiny.train, start_from=str(begun), lora_rank=2))
    experiment = replace(experiment, optimizer=OptimizerConfig(kind="sgd"))
    try:
        facts, measurements = jax_side(experiment)
    finally:  # the side turned the cache off for this process
        jax.config.update("jax_enable_compilation_cache", True)
    params = jax.eval_shape(lambda: init_params(facts["model"], 0))
    assert facts["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert ("classifier" in params) == (kind == "labels")
    assert {"train", "product"} <= set(measurements)
    assert ({"decode 1", "prefill"} <= set(measurements)) == (kind == "adapters")
    with pytest.raises(UsageError, match="labels texts, trains some"):
        bench(experiment, tmp_path / "run", replace(QUICK, against="torch"))


def test_measures_shows_and_writes(tiny, tmp_path, capsys):
    run_dir = tmp_path / "runs" / "new"
    tiny = replace(tiny, optimizer=OptimizerConfig(kind="sgd"))  # sooner compiled than muon
    result = bench(tiny, run_dir, QUICK)
    assert [path.name for path in run_dir.iterdir()] == ["bench.json"]
    assert json.loads((run_dir / "bench.json").read_text()) == json.loads(json.dumps(result))
    assert result["tokens_per_second"].keys() == RATES
    measured = (
        "compile_seconds",
        "step_seconds",
        "tokens_per_second",
        "peak_flops_per_second",
        "peak_memory_bytes",
    )
    for name in measured:
        assert positive(result[name]), name
    assert 0 < result["flops_utilization"] < 1.5
    step = result["step_seconds"]
    assert step["p10"] <= step["median"] <= step["p90"]
    # 4 windows of 12 tokens in a median step; the median of two rounds lies between their medians
    assert 48 / step["p90"] * 0.5 < result["tokens_per_second"]["train"] < 48 / step["p10"] * 2
    shown = capsys.readouterr().out
    assert f"{result['parameters']:,}" in shown
    for rate in result["tokens_per_second"].values():
        assert f"{rate:,.0f} tokens/s" in shown
    assert "PyTorch" not in shown
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("torch") and find_spec("transformers")),
    reason="torch and transformers: requirements-torch.txt",
)
def test_against_torch(tiny, tmp_path, capsys):
    other = replace(tiny, model=replace(tiny.model, dropout=0.1, token_shift=3))
    result = bench(other, tmp_path, replace(QUICK, against="torch"))
    assert result["experiment"]["model"]["dropout"] == 0
    theirs = result["torch"]
    assert theirs["parameters"] == result["parameters"]
    assert theirs["optimizer"] == "Muon and AdamW"
    assert theirs["ratio"].keys() == theirs["tokens_per_second"].keys() == RATES
    assert positive(theirs["ratio"])
    assert positive(theirs["tokens_per_second"])
    shown = capsys.readouterr().out
    for ratio in theirs["ratio"].values():
        assert ratio["lowest"] <= ratio["median"] <= ratio["highest"]
        assert f"{ratio['median']:.2f} x ({ratio['lowest']:.2f} to {ratio['highest']:.2f})" in shown


@pytest.mark.skipif(
    not (find_spec("torch") and find_spec("transformers")),
    reason="torch and transformers: requirements-torch.txt",
)
@pytest.mark.parametrize(
    ("kind", "names"),
    [("muon", ["Muon", "AdamW"]), ("adamw", ["AdamW"]), ("sgd", ["SGD"]), ("lion", ["AdamW"])],
)
def test_the_twin_trains_every_parameter_by_the_same_kind_of_rule(tiny, kind, names):
    net = torch_model(qwen3.FAMILY, resolve(tiny.model, vocab_size=32, context=12))
    optimizers = torch_optimizers(kind, net)
    assert [type(optimizer).__name__ for optimizer in optimizers] == names
    trained = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(map(id, net.parameters()))
    if kind == "muon":
        hidden = sum(p.numel() for group in optimizers[0].param_groups for p in group["params"])
        assert hidden == 4 * 16 * 16 + 3 * 16 * resolve(tiny.model, vocab_size=32, context=12).ff_width


def test_base_has_a_twin():
    check(decoder_family(base().model), base().model)


@pytest.mark.parametrize(
    "change",
    [{"norm_position": "post"}, {"feed_forward": "gelu"}, {"position": "sinusoidal"}],
    ids=str,
)
def test_a_model_without_a_twin_is_refused_by_its_field(tiny, tmp_path, change):
    changed = replace(tiny, model=replace(tiny.model, **change))
    (name,) = change
    with pytest.raises(UsageError, match=rf"cannot express this model: .*model\.{name} is"):
        bench(changed, tmp_path / "run", BenchOptions(against="torch"))
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_named_with_the_command_that_helps(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "zerotollm.interop.torch_model.find_spec", lambda name: None if name == "torch" else True
    )
    with pytest.raises(UsageError, match=r"^torch is not installed.*pip install -r requirements-torch.txt"):
        bench(tiny, tmp_path, BenchOptions(against="torch"))


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"seconds": 0.0}], ids=str)
def test_options_out_of_range(tiny, tmp_path, wrong):
    with pytest.raises(UsageError, match="rounds is"):
        bench(tiny, tmp_path, replace(QUICK, **wrong))


def test_an_error_of_a_side_is_the_error_of_the_bench(tiny, tmp_path):
    missing = replace(tiny, data=replace(tiny.data, corpus=str(tmp_path / "nowhere.txt")))
    with pytest.raises(UsageError, match=r"nowhere\.txt"):
        bench(missing, tmp_path / "run", QUICK)
    assert not multiprocessing.active_children()


def test_a_side_that_dies_is_said_so(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("zerotollm.actions.bench.jax_side", broken)
    with pytest.raises(RunError, match="the process that measures jax died"):
        bench(tiny, tmp_path / "run", QUICK)
    assert "no such measurement" in capfd.readouterr().err


def broken(experiment):
    raise KeyError("no such measurement")


def test_a_busy_machine_is_said_so(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr("zerotollm.actions.bench.jax_side", stopped)
    with pytest.raises(RunError, match="enough"):
        bench(tiny, tmp_path / "run", QUICK)
    assert "busy (load 99.0 on" in capsys.readouterr().out


def stopped(experiment):
    raise RunError("enough")


def test_a_call_is_timed_at_least_once():
    calls = []
    assert len(timed(lambda: calls.append(1), 0.0)) == len(calls) == 1
