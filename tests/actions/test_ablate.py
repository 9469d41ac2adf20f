"""A suite with a tiny model: pairing of seeds, resuming, refusals and written files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from zerotollm.actions.ablate import ablate
from zerotollm.actions.config import AblateOptions, TabulateOptions
from zerotollm.actions.tabulate import tabulate
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.errors import DivergedError, RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.model import transformer
from zerotollm.model.config import TransformerConfig
from zerotollm.own_code import own_code
from zerotollm.session.train_in_memory import Fitted
from zerotollm.studies import train_suite
from zerotollm.studies.suite import Suite, Variant, changed
from zerotollm.studies.table import (
    BITS,
    FUTURE,
    MARGINS,
    best_rate,
    make_rows,
    markdown,
    short_markdown,
)
from zerotollm.studies.train_suite import RemainingTime, describe_validation
from zerotollm.training.config import OptimizerConfig, TrainConfig

ROOT = Path(__file__).parents[2]
TINY = AblateOptions(budget="tiny", seeds=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Experiment:
    folder = tmp_path_factory.mktemp("ablate")
    rng = np.random.default_rng(0)
    words = ["sea", "ship", "wind", "star", "salt", "rope"]
    text = "\n\n".join(" ".join(rng.choice(words, 60)) for _ in range(60))
    (folder / "text.txt").write_text(text)
    return Experiment(
        name="mini",
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "cache"), context=16, batch_size=4),
        tokenizer=TokenizerConfig(kind="char", byte_fallback=False),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2, dropout=0.0),
        optimizer=OptimizerConfig(block=0, warmup_steps=2),
        train=TrainConfig(steps=8),
    )


def suite(base: Experiment, **fields: dict) -> Suite:
    """Return a suite with a variant for each keyword, which changes these fields."""
    made = [
        Variant(name, "group", changed(base, change), "paper", "words") for name, change in fields.items()
    ]
    return Suite(base, tuple(made))


def fake_fit(monkeypatch, bpb) -> list:
    """Replace training by `bpb(programs, seed)`; return the list of (programs, seed) that it is called with."""
    asked = []

    def fitted(programs, seeds, progress):
        asked.extend((programs, seed) for seed in seeds)
        values = [bpb(programs, seed) for seed in seeds]
        return [
            Fitted(seed, {}, [value] * 8, {"loss": value, "bpb": value}, 1.0, 64.0)
            for seed, value in zip(seeds, values, strict=True)
        ]

    compiled = lambda experiment, num_vmapped_seeds=0: SimpleNamespace(experiment=experiment)  # noqa: E731
    monkeypatch.setattr(train_suite, "compile_programs", compiled)
    monkeypatch.setattr(train_suite, "fit", fitted)
    return asked


def test_a_seed_is_the_same_run_in_base_and_variant(base, tmp_path):
    """A variant that changes nothing of the training has exactly the base's numbers, seed by seed."""
    base = changed(base, {"optimizer.kind": "adamw"})  # sooner compiled than muon
    ablate(suite(base, same={"train.log_every": 7}), tmp_path, TINY)
    assert measured(tmp_path, "base") == measured(tmp_path, "same")
    assert len(set(measured(tmp_path, "base"))) == 2


def test_seeds_are_added_until_something_is_shown(base, tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 0.01, (3, 9))

    def bpb(programs, seed):
        layers, norm = programs.experiment.model.num_layers, programs.experiment.model.norm
        if layers == 2:  # a large difference
            return 1.0 + noise[0, seed] + 0.5
        if norm == "layer":  # noise alone, far above the margin
            return 1.0 + 5 * noise[1, seed]
        return 1.0 + noise[2, seed]

    three = suite(base, deep={"model.num_layers": 2}, noisy={"model.norm": "layer"})
    options = AblateOptions(budget="tiny", seeds=3, until_shown=True, max_seeds=6)
    fake_fit(monkeypatch, bpb)
    rows = {row["variant"]: row["shared"] for row in ablate(three, tmp_path, options)}
    assert (rows["deep"]["verdict"], rows["noisy"]["verdict"]) == ("worse", "no difference shown")
    assert rows["deep"]["runs"] < 6
    assert rows["noisy"]["runs"] == rows["base"]["runs"] == 6
    assert (
        "Verdicts are corrected for the looks after 3 to 6 seeds" in (tmp_path / "tiny/table.md").read_text()
    )
    again = fake_fit(monkeypatch, bpb)
    assert {row["variant"]: row["shared"] for row in ablate(three, tmp_path, options)} == rows
    assert not again
    with pytest.raises(UsageError, match="started with --seeds 3 --max-seeds 6"):
        ablate(three, tmp_path, replace(options, max_seeds=9))
    with pytest.raises(UsageError, match="needs 2 seeds or more"):
        ablate(three, tmp_path / "other", replace(options, seeds=1))


@pytest.mark.slow
def test_a_seed_is_the_same_run_together(base, tmp_path):
    ablate(suite(base), tmp_path / "alone", TINY)
    ablate(suite(base), tmp_path / "together", replace(TINY, together=True))
    alone, together = (measured(tmp_path / name, "base") for name in ("alone", "together"))
    assert alone == pytest.approx(together, abs=1e-5)


def measured(run_dir, variant) -> list[float]:
    paths = (run_dir / "tiny" / variant / f"seed-{seed}.json" for seed in (0, 1))
    return [json.loads(path.read_text())["validation_bpb"] for path in paths]


def test_a_record_says_everything(base, tmp_path, monkeypatch):
    fake_fit(monkeypatch, lambda programs, seed: 1.5)
    [first, row] = ablate(suite(base, deep={"model.num_layers": 2}), tmp_path, TINY)
    record = json.loads((tmp_path / "tiny" / "deep" / "seed-1.json").read_text())
    assert record["change"] == [{"field": "model.num_layers", "from": 1, "to": 2}]
    assert record["experiment"]["train"]["seed"] == record["seed"] == 1
    assert (record["variant"], record["outcome"], record["validation_bpb"]) == ("deep", "trained", 1.5)
    assert str(base.data.dir) not in json.dumps(record)
    assert "command" not in record["environment"]
    assert record["environment"]["versions"]["jax"]
    assert row["parameters"] > first["parameters"]
    assert row["shared"]["verdict"] == "no difference that matters"  # the numbers are the same


def test_what_is_finished_is_not_run_again(base, tmp_path, monkeypatch):
    two = suite(base, one={"model.norm": "layer"}, two={"model.qk_norm": False})

    def stop(programs, seed):
        if len(asked) == 4:
            raise KeyboardInterrupt
        return 1.0

    asked = fake_fit(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        ablate(two, tmp_path, TINY)
    assert len(list(tmp_path.rglob("seed-*.json"))) == 3
    again = fake_fit(monkeypatch, lambda programs, seed: 1.0)
    rows = ablate(two, tmp_path, TINY)
    assert [seed for _, seed in again] == [1, 0, 1]
    assert [row["shared"]["trained"] for row in rows] == [2, 2, 2]
    done = fake_fit(monkeypatch, lambda programs, seed: 1.0)
    ablate(two, tmp_path, replace(TINY, seeds=3))
    assert [seed for _, seed in done] == [2, 2, 2]


def test_runs_of_another_experiment_are_refused(base, tmp_path, monkeypatch):
    fake_fit(monkeypatch, lambda programs, seed: 1.0)
    ablate(suite(base), tmp_path, TINY)
    moved = changed(base, {"data.dir": str(tmp_path / "elsewhere")})
    ablate(suite(moved), tmp_path, TINY)
    other = changed(base, {"train.steps": 9, "model.qk_norm": False})
    with pytest.raises(
        UsageError, match=r"model.qk_norm True \(now False\), train.steps 8 \(now 9\).*--run-dir"
    ):
        ablate(suite(other), tmp_path, TINY)


def test_runs_of_another_text_are_refused(base, tmp_path, monkeypatch):
    """The text has the same name. Variant `b` must not be compared with a base that read another text."""
    fake_fit(monkeypatch, lambda programs, seed: 1.0)
    text = Path(base.data.corpus)
    before = text.read_text()
    ablate(suite(base, a={"model.qk_norm": False}), tmp_path / "runs", TINY)
    try:
        text.write_text(before + "\n\nsalt salt salt")
        for again in ({"a": {"model.qk_norm": False}}, {"b": {"model.norm": "layer"}}):
            with pytest.raises(UsageError, match=r"was trained on another text of .*--run-dir"):
                ablate(suite(base, **again), tmp_path / "runs", TINY)
        assert not (tmp_path / "runs" / "tiny" / "b").exists()
        ablate(suite(base), tmp_path / "other", TINY)
    finally:
        text.write_text(before)
    ablate(suite(base, b={"model.norm": "layer"}), tmp_path / "runs", TINY)
    # A record that was copied here from another folder.
    strange = tmp_path / "other" / "tiny" / "base" / "seed-0.json"
    (tmp_path / "runs" / "tiny" / "base" / "seed-7.json").write_bytes(strange.read_bytes())
    with pytest.raises(UsageError, match=r"was trained on another text of "):
        tabulate(base, tmp_path / "runs" / "tiny", TabulateOptions())


def test_a_text_that_changes_while_the_suite_runs_ends_it(base, tmp_path, monkeypatch):
    text = Path(base.data.corpus)
    before = text.read_text()

    def edit(programs, seed):
        text.write_text(before + "\n\nrope rope rope")
        return 1.0

    fake_fit(monkeypatch, edit)
    try:
        with pytest.raises(RunError, match=r"^a: the text of .* has changed since the suite began"):
            ablate(suite(base, a={"model.qk_norm": False}), tmp_path, TINY)
    finally:
        text.write_text(before)
    assert not (tmp_path / "tiny" / "a").exists()


def test_records_without_fingerprints_are_still_compared(base, tmp_path, monkeypatch):
    fake_fit(monkeypatch, lambda programs, seed: 1.0)
    ablate(suite(base), tmp_path, TINY)
    for path in tmp_path.rglob("seed-*.json"):
        record = json.loads(path.read_text())
        assert record.pop("text")[0] > 0
        assert record.pop("start", "") is None
        path.write_text(json.dumps(record))
    asked = fake_fit(monkeypatch, lambda programs, seed: 1.0)
    rows = ablate(suite(base, a={"model.qk_norm": False}), tmp_path, TINY)
    assert [row["shared"]["trained"] for row in rows] == [2, 2]
    assert [seed for _, seed in asked] == [0, 1]


def test_runs_initialized_from_other_parameters_are_refused(base, tmp_path, monkeypatch):
    """`train.start_from` names the same folder, but its run was trained again."""
    from zerotollm.actions.train import train

    fake_fit(monkeypatch, lambda programs, seed: 1.0)
    start = tmp_path / "start"
    train(changed(base, {"train.steps": 1}), start)
    begun = changed(base, {"train.start_from": str(start)})
    ablate(suite(begun), tmp_path / "runs", TINY)
    shutil.rmtree(start)
    train(changed(base, {"train.steps": 1, "train.seed": 5}), start)
    with pytest.raises(UsageError, match=r"was initialized from other parameters of .*start.*--run-dir"):
        ablate(suite(begun), tmp_path / "runs", TINY)


def test_foreign_folders_are_refused(base, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("all of it")
    with pytest.raises(UsageError, match=r"thesis.tex, which is not of a suite"):
        ablate(suite(base), tmp_path, TINY)
    (tmp_path / "small" / "base").mkdir(parents=True)
    (tmp_path / "small" / "base" / "seed-0.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="is not a run of a suite"):
        ablate(suite(base), tmp_path, replace(TINY, budget="small"))
    with pytest.raises(UsageError, match="holds no finished run"):
        tabulate(base, tmp_path / "nowhere", TabulateOptions())
    with pytest.raises(UsageError, match="--seeds is 0"):
        ablate(suite(base), tmp_path / "new", replace(TINY, seeds=0))


def test_tables_and_figures_come_from_the_runs_alone_byte_for_byte(base, tmp_path, monkeypatch):
    fake_fit(
        monkeypatch, lambda programs, seed: 1.0 + 0.1 * seed + 0.01 * programs.experiment.model.num_layers
    )
    ablate(suite(base, deep={"model.num_layers": 2}, post={"model.norm_position": "post"}), tmp_path, TINY)
    names = ("table.md", "table.json", "figure.html", "figure.png")
    before = {name: (tmp_path / "tiny" / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / "tiny" / name).unlink()
    tabulate(Experiment(), tmp_path, TabulateOptions())
    assert before == {name: (tmp_path / "tiny" / name).read_bytes() for name in names}
    assert list(tabulate(Experiment(), tmp_path / "tiny", TabulateOptions())) == ["tiny"]
    assert before == {name: (tmp_path / "tiny" / name).read_bytes() for name in names}
    assert before["figure.png"].startswith(b"\x89PNG")
    assert b"+0.0100 [+0.0100, +0.0100] | worse" in before["table.md"]
    page = tmp_path / "PAGE.md"
    page.write_text("Before.\n\n<!-- table tiny -->\nold\n<!-- end -->\n\nAfter.\n")
    for _ in range(2):
        tabulate(Experiment(), tmp_path / "tiny", TabulateOptions(into=str(page)))
        text = page.read_text()
        assert "| +0.0100 [+0.0100, +0.0100] | worse |" in text
        assert "old" not in text
        assert text.startswith("Before.\n\n<!-- table tiny -->\n| group |")
        assert text.endswith(" bits per byte on.\n<!-- end -->\n\nAfter.\n")
    page.write_text("no place\n")
    with pytest.raises(UsageError, match=r"PAGE\.md has no lines <!-- table tiny -->"):
        tabulate(Experiment(), tmp_path / "tiny", TabulateOptions(into=str(page)))
    assert page.read_text() == "no place\n"
    page.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"PAGE\.md: it is not UTF-8"):
        tabulate(Experiment(), tmp_path / "tiny", TabulateOptions(into=str(page)))
    with pytest.raises(UsageError, match=r"none\.md: No such file"):
        tabulate(Experiment(), tmp_path / "tiny", TabulateOptions(into=str(tmp_path / "none.md")))
    assert "https://cdn" not in before["figure.html"].decode().split("</script>")[-1]


def test_a_variant_that_sees_the_future_is_not_trained(base, tmp_path, monkeypatch):
    asked = fake_fit(monkeypatch, lambda programs, seed: 0.1)
    monkeypatch.setattr(
        transformer, "causal_mask", lambda segments_BT, length: jnp.ones((1, length, length), bool)
    )
    rows = ablate(suite(base, open={"model.qk_norm": False}), tmp_path, TINY)
    assert asked == []
    assert [row["shared"]["verdict"] for row in rows] == ["the base", FUTURE]
    assert rows[1]["shared"]["bpb"] is None
    assert FUTURE in (tmp_path / "tiny" / "table.md").read_text()


def test_a_run_that_diverges_is_a_result(base, tmp_path, monkeypatch):
    """The test of `fit` covers how it detects divergence."""

    def bpb(programs, seed):
        if programs.experiment.optimizer.learning_rate > 1:
            raise DivergedError("no longer finite")
        return 1.0

    asked = fake_fit(monkeypatch, bpb)
    wild = {"optimizer.learning_rate": 1e30}
    rows = ablate(suite(base, wild=wild), tmp_path, replace(TINY, together=True))
    assert [seed for _, seed in asked] == [0, 1, 0, 1, 0, 1], (
        "seeds that trained together are tried one by one"
    )
    assert rows[1]["shared"]["verdict"] == "diverged (2 of 2)"
    assert rows[1]["shared"]["bpb"] is None
    assert rows[0]["shared"]["trained"] == 2


def test_a_run_whose_last_step_diverges_is_a_result(base, tmp_path):
    """All training losses are finite, because each is of the parameters before its step; those after it are not."""
    wild = {"optimizer.kind": "sgd", "optimizer.learning_rate": 1e38, "optimizer.weight_decay": 0.0}
    one = changed(base, {"train.steps": 1, "optimizer.warmup_steps": 0, "optimizer.kind": "adamw"})
    rows = ablate(suite(one, wild=wild), tmp_path, replace(TINY, seeds=1))
    assert rows[1]["shared"]["verdict"] == "diverged (1 of 1)"
    assert json.loads((tmp_path / "tiny" / "wild" / "seed-0.json").read_text())["validation_loss"] is None


def test_a_loss_too_large_for_a_perplexity_is_still_a_row():
    rows = make_rows([record("base", "base", validation_loss=1e6)])
    assert rows[0]["shared"]["perplexity"] is None
    assert rows[0]["shared"]["loss"] == 1e6


def test_the_best_rate_of_labels_is_the_one_with_the_fewest_wrong():
    """Bits per label would choose 0.5; the table compares wrong labels, and rate 2 has fewer."""
    measured = {0.5: (0.7, 1.0), 1.0: (0.75, 1.5), 2.0: (0.8, 2.0)}
    tried = [
        record("base", "base", rate=rate, validation_accuracy=accuracy, validation_bpb=bits)
        for rate, (accuracy, bits) in measured.items()
    ]
    assert best_rate(tried) == 2.0
    assert best_rate([run | {"validation_accuracy": None} for run in tried]) == 0.5


def test_tuning_takes_the_best_rate_of_each_for_all_seeds(base, tmp_path, monkeypatch):
    """The base is best at its rate, `fast` at twice that rate, `slow` at half of it, where it beats the base."""
    best = {"rms": 0.008, "layer": 0.016}

    def bpb(programs, seed):
        experiment = programs.experiment
        wanted = 0.004 if not experiment.model.qk_norm else best[experiment.model.norm]
        gain = 0.05 if not experiment.model.qk_norm else 0.0
        return (
            1.0
            + seed / 10
            - gain
            + abs(np.log2(experiment.optimizer.learning_rate / wanted)) * (1 + seed / 100)
        )

    asked = fake_fit(monkeypatch, bpb)
    three = suite(base, fast={"model.norm": "layer"}, slow={"model.qk_norm": False})
    rows = ablate(three, tmp_path, replace(TINY, tune=True))
    assert {row["variant"]: row["tuned"]["rate"] for row in rows} == {"base": 1.0, "fast": 2.0, "slow": 0.5}
    by_name = {row["variant"]: row for row in rows}
    assert by_name["slow"]["shared"]["verdict"] == "worse"
    assert by_name["slow"]["tuned"]["verdict"] == "better"
    assert by_name["slow"]["tuned"]["difference"] == pytest.approx(-0.05)
    assert all(row["tuned"]["trained"] == 2 for row in rows)
    shared, tuned, _ = short_markdown(rows).split("\n\n")
    assert "best rates" not in shared
    assert [line.split(" | ")[:2] for line in tuned.splitlines()[2:]] == [
        ["| base", "x 1"],
        ["| fast", "x 2"],
        ["| slow", "x 0.5"],
    ]
    assert len(asked) == (2 + 2) + (2 + 2 + 1) * 2
    rate = asked[2][0].experiment.optimizer
    assert (rate.learning_rate, rate.adam_learning_rate, rate.embedding_learning_rate) == (
        0.004,
        0.005,
        0.04,
    )
    assert "tuned difference" in (tmp_path / "tiny" / "table.md").read_text()


def record(variant, group, seed=0, **measured):
    keys = ("change", "paper", "sentence")
    return dict.fromkeys(keys, "") | {
        "variant": variant,
        "group": group,
        "parameters": 10,
        "flops_per_token": 60,
        "tokens_per_second": 1000.0,
        "seed": seed,
        "rate": 1.0,
        "outcome": "trained",
        "validation_bpb": 1.0,
        "validation_loss": 1.0,
        **measured,
    }


def test_labels_are_compared_by_those_that_are_wrong():
    right = {"base": (0.8, 0.82, 0.81), "scratch": (0.7, 0.73, 0.72)}
    records = [
        record(name, "group", seed, validation_accuracy=accuracy, validation_bpb=9.0)
        for name, accuracies in right.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    rows = make_rows(records)
    compared = rows[1]["shared"]
    assert (compared["measure"], compared["verdict"]) == ("share of wrong labels", "worse")
    assert compared["value"] == pytest.approx(1 - np.mean(right["scratch"]))
    assert compared["difference"] == pytest.approx(np.mean(right["base"]) - np.mean(right["scratch"]))
    table = markdown(rows)
    assert "share of wrong labels (runs)" in table
    assert "0.1900 ± 0.0100 (3)" in table
    assert "bits per byte" not in table


def test_a_run_of_labels_says_how_many_are_right():
    assert describe_validation({"bpb": 0.9, "accuracy": 0.8}) == "accuracy 0.8000, 0.9000 bits per label"
    assert describe_validation({"bpb": 0.9}) == "0.9000 bits per byte"


def test_translations_are_compared_by_bleu_too():
    records = [record("base", "base", seed, validation_bleu=20.0 + seed) for seed in range(3)]
    records += [record("other", "group", seed, validation_bleu=25.0 + 2 * seed) for seed in range(3)]
    rows = make_rows(records)
    difference = rows[1]["shared"]["bleu_difference"]
    expected = stats.ttest_1samp([5.0, 6.0, 7.0], 0).confidence_interval()
    assert difference["difference"] == pytest.approx(6.0)
    assert (difference["low"], difference["high"]) == pytest.approx(tuple(expected))
    assert difference["verdict"] == "better"  # more BLEU is better
    line = next(line for line in short_markdown(rows).splitlines() if "| other" in line)
    assert line.endswith("| 27.00 | +6.00 [+3.52, +8.48] | better |")


def test_verdicts_of_a_suite_are_corrected_and_say_by_how_much():
    """In a hundred rows of noise, one is so far from the base that its own interval excludes 0."""
    noise = np.random.default_rng(1).normal(0, 0.02, (100, 3))
    records = [record("base", "base", seed, validation_bpb=1.0) for seed in range(3)]
    records += [
        record(f"v{row:02}", "group", seed, validation_bpb=1.0 + value)
        for row, values in enumerate(noise)
        for seed, value in enumerate(values)
    ]
    records += [record("much", "group", seed, validation_bpb=1.1 + 0.0001 * seed) for seed in range(3)]
    records += [record("same", "group", seed, validation_bpb=1.0 + 1e-6 * seed) for seed in range(3)]
    rows = make_rows(records)
    alone = [
        r["shared"]["verdict"]
        for v in range(100)
        for r in make_rows([*records[:3], *records[3 + 3 * v :][:3]])[1:]
    ]
    assert {"better", "worse"} & set(alone)
    found = {row["variant"]: row["shared"]["verdict"] for row in rows}
    assert (found.pop("base"), found.pop("much"), found.pop("same")) == (
        "the base", "worse", "no difference that matters",
    )  # fmt: skip
    assert set(found.values()) == {"no difference shown"}
    note = "verdicts are corrected for all rows (Holm). A difference matters from 0.002 bits per byte on."
    assert note in markdown(rows)
    assert note in short_markdown(rows)
    wide = {row["variant"]: row["shared"]["verdict"] for row in make_rows(records, MARGINS | {BITS: 0.5})}
    assert set(wide.values()) == {"the base", "no difference that matters"}


def test_a_run_that_diverged_has_no_verdict_and_does_not_count():
    values = {"base": (1.0, 1.1, 1.2), "worse": (1.010, 1.112, 1.214), "gone": (1.0, 1.2, 1.1)}
    records = [record(n, "g", s, validation_bpb=v) for n, row in values.items() for s, v in enumerate(row)]
    records.append(record("gone", "g", 3, validation_bpb=None, outcome="diverged"))
    base, gone, worse = (row["shared"] for row in make_rows(records))
    assert base["verdict"] == "the base"
    assert gone["verdict"] == "diverged (1 of 4)"
    assert gone["difference"] == pytest.approx(0.0)
    assert worse["p_value"] == pytest.approx(stats.ttest_1samp([0.010, 0.012, 0.014], 0).pvalue)


def test_rows_are_in_order_of_group_and_name_after_the_base():
    records = [record("z", "a"), record("b", "c"), record("a", "c"), record("base", "base")]
    assert [row["variant"] for row in make_rows(records)] == ["base", "z", "a", "b"]
    assert make_rows(records) == make_rows(records[::-1])


def test_processor_time_is_compared_over_the_seeds_of_both():
    records = [record("base", "base", seed, cpu_seconds=10.0 + seed) for seed in range(3)]
    records += [record("slow", "group", seed, cpu_seconds=20.0) for seed in (1, 2)]
    records += [record("gone", "group", 0, cpu_seconds=9.0, outcome="diverged", validation_bpb=None)]
    records += [record("old", "group", 0)]
    rows = {row["variant"]: row["relative_time"] for row in make_rows(records)}
    assert rows == {"base": 1.0, "slow": pytest.approx(40 / 23), "gone": None, "old": None}
    lines = {
        line.split(" | ")[1]: line for line in short_markdown(make_rows(records)).splitlines() if "|" in line
    }
    assert lines["variant"].endswith("| verdict | time |")
    assert lines["slow"].endswith("| x 1.74 |")
    assert lines["old"].endswith("| - |")
    assert "Time is a run's processor time, relative to the base's." in markdown(make_rows(records))
    assert "| time" not in short_markdown(make_rows([record("base", "base")]))


def test_functions_of_ones_own_are_a_change_of_one_name(base, tmp_path, monkeypatch):
    """The table names function and file, and counts the parameters of the model that the function returns."""
    fake_fit(monkeypatch, lambda programs, seed: 1.5)
    code = own_code("experiments.own_attention", ROOT / "experiments" / "own_attention.py")
    [first, row] = ablate(suite(base, gated={"code": code}), tmp_path, replace(TINY, seeds=1))
    assert row["parameters"] == first["parameters"] + base.model.width**2
    table = (tmp_path / "tiny" / "table.md").read_text()
    assert "| model of experiments.own_attention |" in table
    assert code.sha256 not in table
    changed_code = replace(code, sha256="0" * 64)
    with pytest.raises(
        UsageError, match=r"^experiments\.own_attention has changed since .*seed-0\.json was trained"
    ):
        ablate(suite(base, gated={"code": changed_code}), tmp_path, replace(TINY, seeds=1))


def test_time_left_is_what_was_measured():
    remaining = RemainingTime(planned=100.0)
    assert np.isnan(remaining.seconds_left())
    remaining.add(20.0, 40.0)
    assert remaining.seconds_left() == 160.0
    remaining.finish_variant(50.0)
    assert remaining.seconds_left() == 100.0


SUITE = '''"""Question: is it resumed?"""
from zerotollm.experiment import from_json
from zerotollm.studies.suite import Variant, changed
def experiment():
    return from_json(open("base.json").read())
def budget(base, size):
    return base
def variants(base):
    return [Variant(f"v{n}", "g", changed(base, {"optimizer.weight_decay": 0.1 * n}), "p", "s") for n in (0, 2, 3)]
'''


@pytest.mark.slow
def test_a_killed_suite_is_resumed_and_keeps_finished_runs(base, tmp_path):
    from zerotollm.experiment import to_json

    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "mini.py").write_text(SUITE)
    (tmp_path / "base.json").write_text(to_json(changed(base, {"train.steps": 300})))
    script = "import sys; from pathlib import Path; from zerotollm.cli import main; "
    script += "sys.exit(main(sys.argv[1:], Path('suites')))"
    command = [sys.executable, "-c", script, "--experiment", "mini", "--seeds", "2", "--budget", "tiny"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.DEVNULL,
    )
    folder = tmp_path / "runs" / "mini" / "tiny"
    while not (found := list(folder.glob("*/seed-*.json"))):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(folder.glob("*/seed-*.json"))) < 8
    before = {path: path.read_bytes() for path in found}
    subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert len(list(folder.glob("*/seed-*.json"))) == 8
    assert before == {path: path.read_bytes() for path in before}
    assert (folder / "table.md").read_text().count("\n| g |") == 3
