"""plan: counts what exists, allocates nothing, says what helps; profile: a trace that exists."""

import gzip
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from jax.errors import JaxRuntimeError

from tests.functions import init_params, init_state
from zerotollm import catalog
from zerotollm.actions.config import PlanOptions, PrepareOptions, ProfileOptions
from zerotollm.actions.plan import plan
from zerotollm.actions.prepare import prepare
from zerotollm.actions.profile import device_spans, occupied, profile
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.feed import sentinels
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.model.compute_config import Accelerator
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.planning.device_table import find
from zerotollm.planning.fit_memory import size_fields, sized
from zerotollm.planning.flops import forward_flops, num_parameters
from zerotollm.planning.memory import compile_step, memory_by_kind, planned_peak, tree_bytes, xla_memory
from zerotollm.planning.report import parameters_by_group, trained_parameters
from zerotollm.planning.speed import counted, flops_per_token
from zerotollm.session.job import job_for
from zerotollm.session.out_of_memory import out_of_memory_explained
from zerotollm.studies.suite import changed
from zerotollm.training.config import OptimizerConfig, TrainConfig

FOLDER = Path(__file__).parents[2] / "experiments"
QUICK = PlanOptions(device="rtx2080")
TINY = Experiment(
    data=DataConfig(context=64, batch_size=8),
    tokenizer=TokenizerConfig(vocab_size=300),
    model=TransformerConfig(num_layers=1, width=64, num_heads=2),
    optimizer=OptimizerConfig(kind="sgd", learning_rate=0.1),
)


@pytest.mark.parametrize("name", catalog.names(FOLDER))
def test_builds_every_experiment_and_counts_its_parameters(name):
    experiment = catalog.load(FOLDER, name)
    job = job_for(experiment, find("rtx2080").accelerator)
    assert sum(parameters_by_group(job).values()) == trained_parameters(job)
    leaves = jax.tree.leaves(job.state().params)
    assert all(leaf.dtype == "float32" for leaf in leaves)
    if "model" not in job.code.functions:  # the formula is of the built-in model
        assert num_parameters(job.model) == trained_parameters(job)
        assert (job.model.vocab_size, job.model.width) in {leaf.shape for leaf in leaves}
    assert ("classifier" in job.parameters()) == (experiment.train.objective == "label")
    pairs = job.model.encoder_layers > 0
    assert job.compute.precision == ("float32" if pairs else "float16")


def label_file(folder: Path) -> Path:
    rows = [{"text": f"text {number}", "label": "abc"[number % 3]} for number in range(60)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "labels.jsonl"


def begun(experiment: Experiment, **train) -> Experiment:
    return replace(experiment, train=replace(experiment.train, start_from="runs/base", **train))


@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("kind", ["label", "part", "adapters", "span_corruption"])
def test_counts_what_is_trained_whatever_it_is(kind, architecture, tmp_path):
    """As `train` makes it: a head of labels instead of one of tokens, and no decoder behind an encoder that labels;
    what stays as it is; adapters; the ids that an objective needs besides."""
    shape = replace(TINY, model=replace(TINY.model, architecture=architecture))
    if kind == "label":
        shape = replace(shape, data=replace(shape.data, corpus=str(label_file(tmp_path))))
    if kind in ("label", "span_corruption"):
        shape = replace(shape, train=replace(shape.train, objective=kind))
    experiment = {
        "part": begun(shape, trainable="layer_0/feed_forward|head"),
        "adapters": begun(shape, lora_rank=2),
    }.get(kind, shape)
    job = job_for(experiment, find("rtx2080").accelerator)
    model = resolve(
        replace(TINY.model, architecture=architecture, num_classes=3 if kind == "label" else 0),
        vocab_size=300 + sentinels(experiment.train.objective),
        context=64,
    )
    state = jax.eval_shape(lambda: init_state(model, experiment.optimizer, experiment.train))
    size = sum(x.size for x in jax.tree.leaves(init_shapes(model)))
    assert sum(parameters_by_group(job).values()) == num_parameters(job.model) == size
    trained = sum(x.size for x in jax.tree.leaves(state.params))
    assert trained_parameters(job) == trained
    assert (trained == size) == (kind in ("label", "span_corruption"))
    memory = memory_by_kind(job)
    assert memory["parameters"] == tree_bytes((state.params, state.frozen))
    assert memory["gradients"] == tree_bytes(state.params)
    assert memory["optimizer state"] == tree_bytes(state.opt_state)


@pytest.mark.parametrize("part", ["", "head", "layer_0", "layer_0/feed_forward/down"])
def test_flops_are_those_of_what_is_trained(part):
    """The forward pass, as much again for what gradients pass through, and for the matrices that have one."""
    job = job_for(begun(TINY, trainable=part), Accelerator("cpu", 0.0, ""))
    forward, head = forward_flops(job.model, job.context), 2 * job.model.width * job.model.vocab_size
    down = 2 * job.model.ff_width * job.model.width
    expected = {
        "": 3 * forward,
        "head": forward + head,
        "layer_0": 3 * forward - head,  # the head passes a gradient on and has none
        "layer_0/feed_forward/down": forward + head + down,
    }
    assert flops_per_token(job) == pytest.approx(expected[part], rel=0.01)
    assert counted(job).flops == pytest.approx(flops_per_token(job) * job.batch_size * job.context, rel=0.01)


def init_shapes(model: TransformerConfig):
    return jax.eval_shape(lambda: init_params(model, 0))


@pytest.mark.parametrize("train", [{"trainable": "layer_3|head"}, {"lora_rank": 4}], ids=str)
def test_memory_of_a_part_is_above_what_xla_plans_and_not_far(train):
    shape = replace(TINY, model=replace(TINY.model, num_layers=4), optimizer=OptimizerConfig(kind="adamw"))
    whole, part = (job_for(one, Accelerator("cpu", 0.0, "")) for one in (shape, begun(shape, **train)))
    planned = planned_peak(xla_memory(compile_step(part)))
    assert planned <= sum(memory_by_kind(part).values()) <= 1.6 * planned
    assert sum(memory_by_kind(part).values()) < sum(memory_by_kind(whole).values())


def test_a_head_of_new_labels_is_trained_whatever_else_is(tmp_path):
    shape = replace(TINY, data=replace(TINY.data, corpus=str(label_file(tmp_path))))
    job = job_for(begun(shape, objective="label", trainable="^embedding"), Accelerator("cpu", 0.0, ""))
    assert trained_parameters(job) == 320 * 64 + 64 * 3


def test_says_all_and_allocates_nothing(capsys, tmp_path):
    before = {id(array) for array in jax.live_arrays()}
    facts = plan(TINY, tmp_path / "run", replace(QUICK, compile="yes"))
    assert {id(array) for array in jax.live_arrays()} <= before
    assert not (tmp_path / "run").exists()
    assert facts["fits"]
    assert facts["needed"] == pytest.approx(sum(facts["memory"].values()), rel=1.0)
    assert facts["tokens"] == TrainConfig().steps * 8 * 64
    assert facts["hours"] == pytest.approx(facts["tokens"] / facts["tokens_per_second"] / 3600)
    assert facts["kilowatt_hours"] == pytest.approx(facts["hours"] * 0.215)
    shown = capsys.readouterr().out
    for words in ("activations", "memory by XLA", "tokens/s", "compute-optimal", "feed forward", "yes"):
        assert words in shown


@pytest.mark.parametrize(("name", "hours"), [("rtx2080", 24.0), ("base", 2.0)])
def test_the_proposed_model_takes_the_hours_that_are_said(name, hours, capsys):
    """A plan for 24 hours proposed a model whose own plan said 33."""
    experiment, options = catalog.load(FOLDER, name), replace(QUICK, hours=hours)
    facts = plan(experiment, Path("run"), options)
    proposed = changed(experiment, facts["compute_optimal_fields"])
    planned = plan(proposed, Path("run"), options)
    assert planned["hours"] == pytest.approx(facts["compute_optimal_hours"], rel=0.03)
    assert hours / 1.5 < planned["hours"] < hours * 1.5
    assert "per parameter: " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", catalog.names(FOLDER))
def test_the_fields_of_another_size_give_that_size(name):
    experiment = catalog.load(FOLDER, name)
    model = resolve(experiment.model, vocab_size=4096, context=experiment.data.context)
    for width in (128, 704):
        size = sized(model, width)
        again = changed(experiment, size_fields(experiment.model, size, steps=7))
        assert resolve(again.model, vocab_size=4096, context=experiment.data.context) == size
        assert again.train.steps == 7


def test_epochs_are_known_once_the_corpus_is_prepared(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(f"Line {n} of the sea and the sky." for n in range(400)))
    data = replace(TINY.data, corpus=str(tmp_path / "text.txt"), dir=str(tmp_path / "cache"))
    experiment = replace(TINY, data=data)
    assert "epochs" not in plan(experiment, tmp_path / "run", QUICK)
    assert "epochs: known after python launch.py --experiment base prepare" in capsys.readouterr().out
    tokens = prepare(experiment, tmp_path / "run", PrepareOptions(processes=1))["tokens"]
    facts = plan(experiment, tmp_path / "run", QUICK)
    assert facts["corpus_tokens"] == tokens
    assert facts["epochs"] == pytest.approx(facts["tokens"] / tokens)
    longer = replace(experiment, train=TrainConfig(steps=7), model=replace(TINY.model, width=128))
    assert plan(longer, tmp_path / "run", QUICK)["epochs"] == pytest.approx(7 * 8 * 64 / tokens)
    other = replace(experiment, tokenizer=TokenizerConfig(vocab_size=400))
    assert "epochs" not in plan(other, tmp_path / "run", QUICK)


def test_an_encoder_decoder_is_planned_as_it_is_trained(capsys):
    pairs = replace(TINY, model=replace(TINY.model, architecture="encoder-decoder"))
    facts = plan(pairs, Path("run"), replace(QUICK, compile="yes"))
    assert set(facts["parameters"]) >= {
        "encoder attention",
        "decoder cross_attention",
        "decoder feed_forward",
    }
    assert facts["needed"] <= sum(facts["memory"].values()) <= 1.6 * facts["needed"]
    assert facts["compute"]["precision"] == "float32"
    job = job_for(pairs, find("rtx2080").accelerator)
    flops = counted(job).flops / (job.batch_size * job.context)
    assert flops == pytest.approx(facts["flops_per_token"], rel=0.01)
    assert "8 pairs of 64 tokens a side" in " ".join(capsys.readouterr().out.split())
    budget = replace(QUICK, memory_gb=(2**29 + 0.5 * facts["needed"]) / 1e9)
    change = plan(pairs, Path("run"), budget)["change"]
    assert set(change) <= {"train.micro_batches", "optimizer.moments"}


def test_what_does_not_fit_gets_the_cheapest_change_and_fit_applies_it(capsys):
    big = replace(TINY, data=replace(TINY.data, context=256, batch_size=32))
    budget = replace(QUICK, memory_gb=0.5 * 2**30 / 1e9 + 0.025)
    facts = plan(big, Path("run"), budget)
    assert not facts["fits"]
    assert facts["change"]
    said = " ".join(capsys.readouterr().out.split())
    assert "does not fit; with --" in said
    assert f"--train.micro-batches {facts['change']['train.micro_batches']}" in said
    fitted = plan(big, Path("run"), replace(budget, fit=True))
    assert fitted["fits"]
    assert fitted["change"] == facts["change"]


def test_what_a_mesh_sends_is_known_only_of_a_compiled_step(capsys):
    plan(TINY, Path("run"), replace(QUICK, mesh="data=2", compile="no"))
    said = capsys.readouterr().out
    assert "not counted with --compile no" in said
    assert "tokens/s" not in said


def test_a_budget_that_nothing_fits():
    with pytest.raises(RunError, match=r"nothing makes base fit into .* take a smaller model") as caught:
        plan(TINY, Path("run"), replace(QUICK, memory_gb=0.5 * 2**30 / 1e9 + 0.0005))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (replace(QUICK, device="rtx2090"), "did you mean"),
        (replace(QUICK, hours=0.0), "hours is 0.0"),
        (replace(QUICK, hours=1e300), "at most 1,000,000,000"),
        (replace(QUICK, memory_gb=-1.0), "memory_gb -1"),
    ],
)
def test_bad_options_are_one_line(options, says):
    with pytest.raises(UsageError, match=says):
        plan(TINY, Path("run"), options)


def test_for_a_card_with_cudnn_attention_something_as_lean_stands_in():
    job = job_for(TINY, Accelerator("gpu", 8.0, "A100"))
    assert (job.compute.precision, job.compute.attention) == ("bfloat16", "chunked")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "--compute.remat dots"),
        ({"remat": "full"}, "--compute.cross-entropy chunked"),
        ({"remat": "full", "cross_entropy": "chunked"}, "--train.micro-batches 2"),
    ],
)
@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
def test_out_of_memory_names_what_is_large_and_what_helps(change, says, architecture):
    shape = replace(
        TINY, model=replace(TINY.model, architecture=architecture), tokenizer=TokenizerConfig(vocab_size=900)
    )
    experiment = replace(shape, compute=replace(TINY.compute, **change))
    with (
        pytest.raises(RunError, match=r"out of memory: about .* GB") as caught,
        out_of_memory_explained(experiment, Path("runs/x")),
    ):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")
    assert says in str(caught.value)
    assert "checkpoints in runs/x are intact" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_pass():
    with pytest.raises(JaxRuntimeError, match="INTERNAL"), out_of_memory_explained(TINY, Path("x")):
        raise JaxRuntimeError("INTERNAL: something else")


def test_profile_writes_a_trace(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Line {n} of the sea and the sky and the star." for n in range(200)))
    experiment = replace(
        TINY,
        data=DataConfig(corpus=str(text), dir=str(tmp_path / "cache"), context=12, batch_size=4),
        tokenizer=TokenizerConfig(kind="char", byte_fallback=False),
        train=TrainConfig(steps=2),
    )
    try:
        result = profile(experiment, tmp_path / "run", ProfileOptions(seconds=0.01))
    finally:  # it turned the cache off, for this process
        jax.config.update("jax_enable_compilation_cache", True)
    trace = json.loads(gzip.decompress(Path(result["trace"]).read_bytes()))
    assert trace["traceEvents"]
    assert result["seconds"]
    assert "ui.perfetto.dev" in capsys.readouterr().out
    assert 0 < result["busy"] <= 1


def test_a_full_disk_is_an_error_of_the_disk(monkeypatch, tmp_path):
    @contextmanager
    def full(*_, **__):
        yield
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: vm.xplane.pb; No space left on device")

    monkeypatch.setattr(jax.profiler, "trace", full)
    monkeypatch.setattr(
        "zerotollm.actions.profile.jax_side", lambda *_, **__: ({}, {"train": lambda _: [1.0]})
    )
    with pytest.raises(OSError, match="No space left on device"):
        profile(TINY, tmp_path, ProfileOptions())


def test_pauses_of_the_device_are_what_nothing_covers():
    busy, pause = occupied([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (0.5, 1.0), (9.0, 10.0)])
    assert (busy, pause) == (0.5, 3.0)
    assert occupied([]) == (0.0, 0.0)


def test_spans_are_those_of_the_gpu_where_there_is_one():
    def name(kind, pid, text, **tid):
        return {"ph": "M", "name": kind, "pid": pid, "args": {"name": text}, **tid}

    def span(pid, tid, begin, text="dot"):
        return {"ph": "X", "pid": pid, "tid": tid, "ts": begin * 1e6, "dur": 1e6, "name": text}

    cpu = [name("thread_name", 1, "tf_XLAEigen/1", tid=7), name("thread_name", 1, "python", tid=8)]
    cpu += [span(1, 7, 0), span(1, 8, 3), span(1, 7, 5, "wait for completion")]
    assert device_spans(cpu) == [(0.0, 1.0)]
    assert device_spans([*cpu, name("process_name", 2, "/device:GPU:0"), span(2, 9, 4)]) == [(4.0, 5.0)]
