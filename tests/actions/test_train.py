"""Training end to end on a small text of its own: what a run leaves, how it stops, how it goes on."""

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zerotollm
from zerotollm import components, run_directory
from zerotollm.actions import train as train_module
from zerotollm.actions.train import train
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.fields import added_defaults
from zerotollm.host.stop_signals import StoppedError
from zerotollm.model.config import TransformerConfig
from zerotollm.planning.promises import EARLY
from zerotollm.session.run_log import RunLog
from zerotollm.training import checkpoints
from zerotollm.training.config import TrainConfig
from zerotollm.training.lora import flatten_params
from zerotollm.training.metrics import MetricsWriter, read_metrics

STEPS = 24


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    """Twenty-four steps of a model with dropout, in a second or two."""
    folder = tmp_path_factory.mktemp("text")
    words = [
        "in",
        "the",
        "beginning",
        "god",
        "created",
        "heaven",
        "and",
        "earth",
        "while",
        "waters",
        "covered",
        "all",
        "of",
        "it",
    ]
    draw = random.Random(0)
    paragraphs = [" ".join(draw.choices(words, k=60)) + ".\n" for _ in range(60)]
    (folder / "text.txt").write_text("\n".join(paragraphs), encoding="utf-8")
    return Experiment(
        name="tiny",
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "data"), context=16, batch_size=4),
        tokenizer=TokenizerConfig(kind="char"),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2, dropout=0.1),
        train=TrainConfig(
            steps=STEPS, eval_every=8, sample_every=12, checkpoint_every=8, log_every=5, keep=2
        ),
        sample=SamplingConfig(max_tokens=5),
    )


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory) -> Path:
    """A run that nothing ever interrupted, begun where only a bench was."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    run_dir.mkdir()
    (run_dir / "bench.json").write_text("{}\n")
    train(experiment, run_dir)
    return run_dir


def lines(run_dir: Path) -> list[str]:
    """metrics.jsonl, without what a clock measured."""
    return [
        json.dumps({k: v for k, v in line.items() if k != "timing"})
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]


def saved(run_dir: Path) -> dict[int, dict[str, np.ndarray]]:
    """Every array of every checkpoint by its path."""
    import orbax.checkpoint as ocp

    return {
        c.step: {
            jax.tree_util.keystr(path): np.asarray(x)
            for path, x in jax.tree_util.tree_leaves_with_path(
                ocp.StandardCheckpointer().restore((c.path / "state").absolute())
            )
        }
        for c in checkpoints.finished(run_dir / "checkpoints")
    }


def assert_same_run(run_dir: Path, expected: Path) -> None:
    assert lines(run_dir) == lines(expected)
    ours, theirs = saved(run_dir)[STEPS], saved(expected)[STEPS]
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert array.tobytes() == ours[name].tobytes(), name


def stop_at(monkeypatch, step: int, number: signal.Signals) -> None:
    """Sends this process a signal when the line of `step` is written."""
    write = MetricsWriter.write

    def write_and_kill(self, line):
        write(self, line)
        if line["step"] == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(MetricsWriter, "write", write_and_kill)


def test_a_run_leaves_everything_in_its_directory(experiment, finished):
    assert run_directory.read_experiment(finished) == experiment
    assert json.loads((finished / "environment.json").read_text())["versions"]["jax"] == jax.__version__
    assert (finished / "tokenizer.model").stat().st_size > 0
    assert sorted(p.name for p in (finished / "samples").iterdir()) == ["step-000012.txt", "step-000024.txt"]
    metrics = read_metrics(finished / "metrics.jsonl")
    trained = [line for line in metrics if "loss" in line]
    validated = [line for line in metrics if "validation_bpb" in line]
    assert [line["step"] for line in trained] == [5, 10, 15, 20, 24]
    assert [line["step"] for line in validated] == [8, 16, 24]
    assert {"bpb", "grad_norm", "param_norm", "learning_rate", "timing"} <= trained[0].keys()
    assert trained[-1]["tokens"] == STEPS * 4 * 16
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert any((finished / "tensorboard").iterdir())
    assert (finished / "bench.json").read_text() == "{}\n"


def test_the_summary_holds_what_was_measured(finished):
    summary = json.loads((finished / "summary.json").read_text())
    validated = [line for line in read_metrics(finished / "metrics.jsonl") if "validation_bpb" in line]
    assert summary["steps"] == STEPS
    assert summary["validation_bpb"] == validated[-1]["validation_bpb"]
    assert summary["best_validation_bpb"] == min(line["validation_bpb"] for line in validated)
    assert summary["parameters"] == sum(a.size for k, a in saved(finished)[STEPS].items() if "params" in k)
    assert 0 < summary["step_seconds"] <= summary["seconds"]
    assert summary["peak_memory_bytes"] > 50e6
    assert summary["cpu_seconds"] > 0


def test_a_run_foretells_its_cost_and_tells_how_far_off_that_was(finished):
    promise = json.loads((finished / "promise.json").read_text())
    assert set(promise["before"]) == {"cpu_seconds", "seconds", "peak_memory_bytes"}
    assert "bible-web" in promise["left_out"]["validation_bpb"]
    assert promise["basis"]["steps"] == STEPS
    assert promise["basis"]["step_flops"] > 0 < promise["basis"]["step_bytes"]
    assert len(promise["early"]["durations"]) == EARLY
    summary = json.loads((finished / "summary.json").read_text())
    kept = {entry["quantity"]: entry for entry in summary["promises"]["kept"]}
    assert set(kept) == {"cpu_seconds", "seconds", "peak_memory_bytes", "step_seconds"}
    for quantity, entry in kept.items():
        assert entry["low"] < entry["value"] < entry["high"] or quantity == "step_seconds"
        assert entry["measured"] == summary[quantity]
        assert entry["held"] == (entry["low"] <= entry["measured"] <= entry["high"])
    assert not summary["promises"]["not_judged"]


def test_a_resumed_run_is_judged_by_its_steps_alone(experiment, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 15, signal.SIGTERM)
        with pytest.raises(StoppedError):
            train(experiment, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "promise.json").read_text())
    shutil.copytree(tmp_path / "run", tmp_path / "damaged")
    summary = train(experiment, tmp_path / "run")
    after = json.loads((tmp_path / "run" / "promise.json").read_text())
    (resumed,) = after.pop("resumed")
    assert after == before
    assert resumed["step"] >= 15
    assert resumed["same_machine"]
    assert [entry["quantity"] for entry in summary["promises"]["kept"]] == ["step_seconds"]
    assert set(summary["promises"]["not_judged"]) == {"cpu_seconds", "seconds", "peak_memory_bytes"}
    (tmp_path / "damaged" / "promise.json").write_text("{")
    assert "promises" not in train(experiment, tmp_path / "damaged")


def test_foretelling_takes_milliseconds_and_no_compilation(experiment, finished, tmp_path, monkeypatch):
    """Processor time, because other work on the machine does not change it much."""
    spent = []
    promise = train_module.promise

    def timed(*arguments):
        began = time.process_time()
        promise(*arguments)
        spent.append(time.process_time() - began)

    monkeypatch.setattr(train_module, "promise", timed)
    train(experiment, tmp_path / "run")
    assert spent[0] < 0.2


def test_a_finished_run_says_so_and_changes_nothing(experiment, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    summary = train(experiment, finished)
    assert summary == json.loads((finished / "summary.json").read_text())
    assert "is finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}


def test_a_run_of_an_earlier_version_goes_on_as_if_nothing_had_been(experiment, finished, tmp_path):
    run_dir = tmp_path / "earlier"
    shutil.copytree(finished, run_dir)
    (run_dir / "summary.json").unlink()
    (run_dir / "promise.json").unlink()
    shutil.rmtree(run_dir / f"checkpoints/{STEPS:08}")
    config = json.loads((run_dir / "config.json").read_text())
    for group in fields(Experiment)[1:]:
        for name in added_defaults(group.type):
            del config[group.name][name]
    (run_dir / "config.json").write_text(json.dumps(config))
    for checkpoint in checkpoints.finished(run_dir / "checkpoints"):
        manifest = checkpoint.manifest()
        for name in ("frozen", "before", "cpu_seconds"):
            del manifest["notes"][name]
        del manifest["files"]["metrics.jsonl"]
        (checkpoint.path / "metrics.jsonl").unlink()
        (checkpoint.path / "manifest.json").write_text(json.dumps(manifest))
    train(experiment, run_dir)
    assert_same_run(run_dir, finished)


@pytest.mark.parametrize(
    ("number", "code", "step"),
    [(signal.SIGTERM, 143, 5), (signal.SIGINT, 130, 16)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_stopped_run_saves_and_goes_on_as_if_nothing_had_been(
    experiment, finished, tmp_path, monkeypatch, number, code, step
):
    with monkeypatch.context() as patch:
        stop_at(patch, step, number)
        with pytest.raises(StoppedError, match="the same command resumes it") as caught:
            train(experiment, tmp_path / "run")
    assert caught.value.exit_code == code
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    newest = checkpoints.finished(tmp_path / "run" / "checkpoints")[-1].step
    assert step <= newest <= step + 3
    assert not (tmp_path / "run" / "summary.json").exists()
    train(experiment, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished)


def test_neither_average_nor_best_depends_on_how_often_a_run_was_stopped(experiment, tmp_path, monkeypatch):
    """The mean is that of the newest checkpoints at multiples of `checkpoint_every` and at the end, bit for bit; a
    checkpoint of a stop neither enters it nor takes the place of another, not even beside a best one of its own."""
    rhythm = replace(experiment.train, average=3, keep=1, eval_every=5, checkpoint_every=4, log_every=1)
    often = replace(experiment, train=replace(rhythm, sample_every=0))
    train(often, tmp_path / "whole")
    stops = 0
    while not (tmp_path / "stopped" / "summary.json").exists():
        newest = max(saved(tmp_path / "stopped"), default=0)
        with monkeypatch.context() as patch, suppress(StoppedError):
            stop_at(patch, newest + 1, signal.SIGTERM)
            train(often, tmp_path / "stopped")
        stops += 1
    assert stops > 6
    whole, stopped = saved(tmp_path / "whole"), saved(tmp_path / "stopped")
    assert {16, 20, 24} <= whole.keys() == stopped.keys()
    for name, array in whole[STEPS].items():
        assert array.tobytes() == stopped[STEPS][name].tobytes(), name
    for choice in ("average", "best"):
        ours, theirs = (zerotollm.load(tmp_path / name, choice) for name in ("stopped", "whole"))
        assert ours.step == theirs.step
        for path, array in flatten_params(theirs.params):
            assert (
                np.asarray(array).tobytes() == np.asarray(dict(flatten_params(ours.params))[path]).tobytes()
            ), path
    head = next(name for name in whole[STEPS] if "params" in name and "head" in name)
    mean = np.mean([whole[step][head].astype(np.float64) for step in (16, 20, 24)], axis=0)
    average = zerotollm.load(tmp_path / "stopped", "average").params["head"]
    np.testing.assert_allclose(average, mean, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("average", [1, 2])
def test_what_the_summary_calls_the_best_is_what_load_gives(experiment, tmp_path, monkeypatch, average):
    """Validations fall between the steps that are saved anyway, and the best of them is not the last."""
    scores = iter([3.0, 2.0, 1.5, 1.75, 1.6])
    evaluate = train_module.evaluate_feed
    monkeypatch.setattr(
        train_module, "evaluate_feed", lambda *arguments: evaluate(*arguments) | {"bpb": next(scores)}
    )
    rhythm = replace(experiment.train, eval_every=5, checkpoint_every=7, keep=1, average=average)
    summary = train(replace(experiment, train=replace(rhythm, sample_every=0)), tmp_path / "run")
    assert (summary["best_step"], summary["best_validation_bpb"]) == (15, 1.5)
    run = zerotollm.load(tmp_path / "run", "best")
    assert (run.step, run.validation_bpb) == (15, 1.5)
    assert sorted(saved(tmp_path / "run")) == ([15, 24] if average == 1 else [15, 21, 24])


def test_while_a_slow_save_is_under_way_a_twentieth_of_the_interval_is_trained(
    experiment, tmp_path, monkeypatch
):
    begun, at_commit = [0], {}
    record, commit = RunLog.step, checkpoints.CheckpointWriter._commit

    def noted(self, step, metrics):
        begun.append(step)
        record(self, step, metrics)

    def slow(self, saving, step, notes):
        deadline = time.monotonic() + 60
        while begun[-1] < min(step + 1, STEPS) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.2)  # in which more would begin
        at_commit[step] = begun[-1]
        commit(self, saving, step, notes)

    monkeypatch.setattr(RunLog, "step", noted)
    monkeypatch.setattr(checkpoints.CheckpointWriter, "_commit", slow)
    often = replace(experiment, train=replace(experiment.train, eval_every=20, checkpoint_every=20))
    train(often, tmp_path / "run")
    kept = checkpoints.finished(tmp_path / "run" / "checkpoints")
    assert all(checkpoint.bpb() is not None for checkpoint in kept), (
        "a later step changed what was being saved"
    )
    assert at_commit == {20: 21, STEPS: STEPS}
    assert begun[-1] == STEPS


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    experiment, finished, tmp_path, capsys
):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    (run_dir / "summary.json").unlink()
    newest = checkpoints.finished(run_dir / "checkpoints")[-1]
    file = max((p for p in newest.path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    train(experiment, run_dir)
    out = capsys.readouterr().out
    assert f"the checkpoint of step {STEPS} is damaged" in out
    assert "resuming after step 16" in out
    assert_same_run(run_dir, finished)


def test_killed_between_the_last_checkpoint_and_the_summary(experiment, finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    (run_dir / "summary.json").unlink()
    summary = train(experiment, run_dir)
    before = json.loads((finished / "summary.json").read_text())
    clocks = {"seconds", "step_seconds", "cpu_seconds", "tokens_per_second", "peak_memory_bytes", "promises"}
    assert {k: v for k, v in summary.items() if k not in clocks} == {
        k: v for k, v in before.items() if k not in clocks
    }
    assert_same_run(run_dir, finished)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(experiment, tmp_path, monkeypatch):
    """The update of step 16, where a checkpoint is due, breaks the parameters; its own loss is still finite."""

    def breaking_step(state, batch, seed):
        params = jax.tree.map(lambda x: x + jnp.where(state.step == 15, jnp.nan, 0.0), state.params)
        norm = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(params)))
        metrics = {"loss": jnp.float32(1), "grad_norm": jnp.float32(1), "param_norm": norm}
        return state._replace(step=state.step + 1, params=params), metrics

    monkeypatch.setattr(components, "make_train_step", lambda gradients, update: breaking_step)
    with pytest.raises(RunError, match="at step 16") as caught:  # where a checkpoint was due
        train(experiment, tmp_path / "run")
    assert "\n" not in str(caught.value)
    arrays = saved(tmp_path / "run")
    assert list(arrays) == [8]
    assert all(np.isfinite(array).all() for array in arrays[8].values())


def test_another_configuration_is_refused(experiment, finished):
    other = replace(experiment, train=replace(experiment.train, seed=1))
    with pytest.raises(UsageError, match=r"train\.seed 0 \(now 1\)"):
        train(other, finished)


def test_another_text_under_the_same_name_is_refused(experiment, finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    (run_dir / "summary.json").unlink()
    file = Path(experiment.data.corpus)
    text = file.read_text(encoding="utf-8")
    try:
        file.write_text(text.replace("heaven", "heavens"), encoding="utf-8")
        with pytest.raises(RunError, match="has changed since"):
            train(experiment, run_dir)
    finally:
        file.write_text(text, encoding="utf-8")


def test_a_directory_in_use_is_refused(experiment, tmp_path):
    with (
        run_directory.locked(tmp_path / "run"),
        pytest.raises(RunError, match=f"is being written by process {os.getpid()}"),
    ):
        train(experiment, tmp_path / "run")


def test_a_read_only_place_is_one_line(experiment):
    with pytest.raises(RunError, match="cannot write /proc/run"):
        train(experiment, Path("/proc/run"))
