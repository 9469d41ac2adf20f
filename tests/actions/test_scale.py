"""A whole ladder: trained once, with the same files each time, and without points of another ladder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zerotollm import catalog
from zerotollm.actions.scale import scale
from zerotollm.components import dataset_of
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, from_json, to_json
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.planning.flops import train_flops
from zerotollm.studies.ladder import measure_point, run_size, seconds_left
from zerotollm.training.config import OptimizerConfig, TrainConfig

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MADE = ("law.json", "table.md", "figure.png", "figure.html")


def sized(base: Experiment, width: int, steps: int) -> Experiment:
    return replace(
        base,
        name=f"{base.name}-{width}-{steps}",
        model=replace(base.model, width=width),
        train=replace(base.train, steps=steps),
    )


def ladder(base: Experiment) -> tuple[Experiment, ...]:
    return tuple(sized(base, width, steps) for width in (4, 8) for steps in (4, 8, 16))


def next_size(base: Experiment) -> Experiment:
    return sized(base, 16, 20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Experiment:
    folder = tmp_path_factory.mktemp("scale")
    rng = np.random.default_rng(0)
    words = ["sea", "ship", "wind", "star", "salt", "rope"]
    (folder / "text.txt").write_text("\n\n".join(" ".join(rng.choice(words, 60)) for _ in range(60)))
    return Experiment(
        name="tiny",
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "cache"), context=16, batch_size=4),
        tokenizer=TokenizerConfig(kind="char", byte_fallback=False),
        model=TransformerConfig(num_layers=1, num_heads=1),
        optimizer=OptimizerConfig(kind="adamw", warmup_steps=1),
        train=TrainConfig(steps=4),
    )


def pretended(run: Experiment) -> dict:
    """Return a record as `measure_point` does, without training."""
    N, D = run_size(run, 64)
    loss = (1 + 3 / N**0.3 + 20 / D**0.5) * (1 + 0.001 * (run.train.steps % 3))
    text = dataset_of(run).fingerprint
    made_up = {
        "text": text,
        "vocab_size": 64,
        "epochs": 0.5,
        "flops": 6 * N * D,
        "seconds": 3.0,
        "compile_seconds": 1.0,
    }
    record = {"experiment": json.loads(to_json(run)), "parameters": N, "tokens": D, "bpb": loss, "loss": loss}
    return record | made_up


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory) -> Path:
    """Return a finished run directory of made-up points."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zerotollm.actions.scale.cache_compiled_programs", lambda data: None)
        patch.setattr("zerotollm.studies.ladder.measure_point", pretended)
        scale(tiny, run_dir, ladder, next_size)
    return run_dir


@pytest.fixture
def untrained(monkeypatch):
    """Fail where a run would be trained."""

    def fail(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("zerotollm.studies.ladder.measure_point", fail)
    monkeypatch.setattr("zerotollm.actions.scale.cache_compiled_programs", lambda data: None)


def test_every_point_is_kept_and_the_prediction_is_held_against_the_run(done, tiny):
    runs = [*ladder(tiny), next_size(tiny)]
    assert {path.stem for path in (done / "points").iterdir()} == {run.name for run in runs}
    law = json.loads((done / "law.json").read_text())
    larger = json.loads((done / "points" / f"{runs[-1].name}.json").read_text())
    assert law["points"] == 6  # the larger run is not in the fit
    assert law["prediction"]["measured"] == larger["bpb"]
    assert law["prediction"]["parameters"] == larger["parameters"]
    assert larger["tokens"] == 20 * 4 * 16
    assert (done / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (done / "table.md").read_text().count("predicted") == 1


def test_a_second_call_trains_nothing_and_writes_the_same_bytes(done, tiny, untrained, capsys):
    before = {name: (done / name).read_bytes() for name in MADE}
    for name in MADE:
        (done / name).unlink()
    scale(tiny, done, ladder, next_size)
    assert {name: (done / name).read_bytes() for name in MADE} == before
    assert "the prediction was" in capsys.readouterr().out


def test_the_prediction_is_written_before_the_larger_run_is_trained(done, tiny, tmp_path, monkeypatch):
    """The prediction does not change afterwards."""
    for path in (done / "points").iterdir():
        if path.stem != next_size(tiny).name:
            (tmp_path / "points").mkdir(exist_ok=True)
            (tmp_path / "points" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_bytes((done / "config.json").read_bytes())

    def stop(run):
        assert run == next_size(tiny)
        raise KeyboardInterrupt

    monkeypatch.setattr("zerotollm.studies.ladder.measure_point", stop)
    monkeypatch.setattr("zerotollm.actions.scale.cache_compiled_programs", lambda data: None)
    with pytest.raises(KeyboardInterrupt):
        scale(tiny, tmp_path, ladder, next_size)
    early, late = (json.loads((folder / "law.json").read_text())["prediction"] for folder in (tmp_path, done))
    assert early["measured"] is None
    assert early | {"measured": late["measured"]} == late


def test_a_point_is_the_run_of_that_experiment(tiny):
    record = measure_point(ladder(tiny)[-1])
    model = resolve(ladder(tiny)[-1].model, vocab_size=record["vocab_size"], context=16)
    assert from_json(json.dumps(record["experiment"])) == ladder(tiny)[-1]
    assert run_size(ladder(tiny)[-1], record["vocab_size"]) == (record["parameters"], record["tokens"])
    assert record["flops"] == 16 * 4 * 16 * train_flops(model, 16)
    assert 0 < record["compile_seconds"] < record["seconds"]
    assert 0 < record["bpb"] < 8


@pytest.mark.slow
def test_a_ladder_that_is_really_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("zerotollm.actions.scale.cache_compiled_programs", lambda data: None)
    first = scale(tiny, tmp_path / "one", ladder, next_size)
    again = scale(tiny, tmp_path / "other", ladder, next_size)
    assert first == again
    for name in MADE:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_directory_of_another_experiment_is_refused(done, tiny, untrained):
    other = replace(tiny, train=replace(tiny.train, seed=1))
    with pytest.raises(UsageError, match=r"train\.seed 0 \(now 1\).*--run-dir"):
        scale(other, done, ladder, next_size)


def test_a_point_of_another_ladder_is_refused(done, tiny, untrained):
    def warmer(base: Experiment) -> tuple[Experiment, ...]:
        return tuple(replace(run, optimizer=replace(run.optimizer, warmup_steps=2)) for run in ladder(base))

    with pytest.raises(UsageError, match=r"optimizer\.warmup_steps 1 \(now 2\).*--run-dir"):
        scale(tiny, done, warmer, next_size)


def test_points_of_another_text_of_the_same_name_are_refused(done, tiny, untrained):
    text = Path(tiny.data.corpus)
    before = text.read_text()
    try:
        text.write_text(before + "\n\na line more")
        with pytest.raises(UsageError, match=r"was trained on another text of .*--run-dir"):
            scale(tiny, done, ladder, next_size)
    finally:
        text.write_text(before)


def test_a_ladder_too_short_to_fit_is_refused(tiny, tmp_path, untrained):
    with pytest.raises(UsageError, match="has 5 runs"):
        scale(tiny, tmp_path / "new", lambda base: ladder(base)[:5], next_size)
    assert not (tmp_path / "new").exists()


def test_time_left_is_that_of_the_work_and_the_compilations(tiny):
    N, D = run_size(ladder(tiny)[0], 64)
    done = {"parameters": N, "tokens": D, "seconds": 5.0, "compile_seconds": 3.0, "vocab_size": 64}
    assert seconds_left([done], [ladder(tiny)[0]] * 2) == pytest.approx(10.0)
    slow = done | {"seconds": 9.0}
    assert seconds_left([done, slow], [ladder(tiny)[0]]) == pytest.approx(5.0)


# --- the ladder of the repository


def test_the_ladder_of_scaling_is_sound():
    from experiments import scaling

    base = scaling.experiment()
    runs = scaling.ladder(base)
    sizes = [run_size(run, base.tokenizer.vocab_size) for run in runs]
    larger = run_size(scaling.next_size(base), base.tokenizer.vocab_size)
    assert len(runs) >= 12
    assert len({run.name for run in runs}) == len(runs)
    assert larger[0] > max(N for N, _ in sizes)
    assert larger[0] * larger[1] > 2 * max(N * D for N, D in sizes)
    shared = [round(N * D * 6 / budget, 1) for N, D in sizes for budget in scaling.BUDGETS]
    assert shared.count(1.0) == len(runs)  # each at one of the budgets
    assert len({N for N, _ in sizes}) == len(scaling.WIDTHS)


def test_overrides_of_the_base_reach_every_run():
    from experiments import scaling

    base = scaling.experiment()
    seeded = replace(base, train=replace(base.train, seed=7))
    assert {run.train.seed for run in (*scaling.ladder(seeded), scaling.next_size(seeded))} == {7}


def test_scale_is_what_an_experiment_with_a_ladder_does():
    assert catalog.default_action(EXPERIMENTS, "scaling") == "scale"
    assert catalog.default_action(EXPERIMENTS, "base") == "train"
