"""A run directory opened from Python."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import zerotollm
from zerotollm.actions.train import train
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.training.config import TrainConfig

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    draw = random.Random(1)
    paragraphs = [" ".join(draw.choices(["heaven", "and", "earth", "were"], k=60)) for _ in range(40)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    experiment = Experiment(
        name="tiny",
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "data"), context=16, batch_size=4),
        tokenizer=TokenizerConfig(kind="char"),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2),
        train=TrainConfig(steps=6, eval_every=2, checkpoint_every=2, keep=2, log_every=2),
        sample=SamplingConfig(max_tokens=4),
    )
    train(experiment, folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="module")
def run(run_dir) -> zerotollm.Run:
    return zerotollm.load(run_dir)


def test_a_run_holds_what_was_trained(run, run_dir):
    assert run.experiment.name == "tiny"
    assert run.step in (4, 6)
    assert run.model_config.vocab_size >= run.tokenizer.vocab_size
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(run.params))
    assert type(run.params) is dict
    assert run.num_parameters == sum(x.size for x in jax.tree.leaves(run.params))
    steps = [line["step"] for line in run.metrics() if "validation_bpb" in line]
    assert steps == [2, 4, 6]


def test_the_best_checkpoint_is_opened_unless_another_is_named(run, run_dir):
    scores = {line["step"]: line["validation_bpb"] for line in run.metrics() if "validation_bpb" in line}
    assert run.step == min(scores, key=scores.get)
    assert run.validation_bpb == min(scores.values())
    assert zerotollm.load(run_dir, step="last").step == 6
    assert zerotollm.load(run_dir, step=4).validation_bpb == scores[4]
    with pytest.raises(UsageError, match=r"no checkpoint of step 5: best, last, average or one of"):
        zerotollm.load(run_dir, step=5)


def test_its_validation_is_the_one_that_was_measured(run):
    """Saved and restored, the parameters give the very loss that training noted for them."""
    from tests.functions import make_eval_step
    from zerotollm.data.batches.windows import evaluation_batches
    from zerotollm.data.feed import evaluation_rows
    from zerotollm.data.tokens.text import prepare
    from zerotollm.evaluation.loss import evaluate_batches

    split = prepare(run.experiment.data, run.experiment.tokenizer).splits["validation"]
    rows = evaluation_rows(run.experiment.data.batch_size)
    batches = evaluation_batches(split, context=16, batch_size=rows)
    step = make_eval_step(run.model_config)
    scores = evaluate_batches(step, run.params, batches, num_bytes=split.num_bytes)
    assert scores["bpb"] == run.validation_bpb


def test_it_writes_text(run):
    text = run.generate("heaven", max_tokens=5, seed=3)
    assert text.startswith("heaven")
    assert text == run.generate("heaven", max_tokens=5, seed=3)
    assert text == "".join(run.stream("heaven", max_tokens=5, seed=3))
    with pytest.raises(UsageError, match=r"unknown option maxtokens: one of .*max_tokens"):
        run.generate("heaven", maxtokens=5)


def test_it_patches_pairs_of_texts(run):
    one = run.patch("heaven and e", "heaven and w", answers=("a", "e"))
    assert one.pieces[-1] == "e/w"
    assert one.mean_of == "held-out text"
    assert one.state_LT.value.shape == (1, len("heaven and e") + 1)
    assert one.state_LT.value[0, -1] == pytest.approx(one.gap.value, abs=1e-4)
    two = run.patch(["and e", "wer e"], ["and w", "wer w"], answers=("a", "e"))
    assert two.pairs == 2
    assert np.isfinite(two.head_LH.low).all()
    with pytest.raises(UsageError, match="patch has 2 clean and 1 corrupted texts: give pairs"):
        run.patch(["and e", "wer e"], "and w")


def test_compiled_programs_lie_beside_the_data_unless_jax_was_told_a_place(run, tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        for given, expected in (("elsewhere", "elsewhere"), (None, str(tmp_path / "compiled"))):
            jax.config.update("jax_compilation_cache_dir", given)
            cache_compiled_programs(replace(run.experiment.data, dir=str(tmp_path)))
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_it_says_in_a_line_what_it_is(run):
    assert "\n" not in repr(run)
    assert f"step {run.step}" in repr(run)
    assert len(repr(run)) < 300


def test_what_is_no_run_is_refused(tmp_path, run_dir):
    with pytest.raises(UsageError, match="is no run directory"):
        zerotollm.load(tmp_path)
    with pytest.raises(UsageError, match="is no run directory"):
        zerotollm.load(tmp_path / "missing")
    (tmp_path / "config.json").write_bytes((run_dir / "config.json").read_bytes())
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        zerotollm.load(tmp_path)


def test_a_damaged_checkpoint_is_never_opened(tmp_path, run_dir, run):
    import shutil

    copy = shutil.copytree(run_dir, tmp_path / "copy")
    checkpoint = copy / "checkpoints" / f"{run.step:08}"
    file = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match="is damaged"):
        zerotollm.load(copy)


def test_importing_costs_nothing_until_a_run_is_opened():
    code = "import sys, zerotollm; assert 'load' in dir(zerotollm); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "orbax"} & set(out.stdout.split())
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = zerotollm.lod


def test_the_parameters_are_numbers_a_person_can_look_at(run):
    shapes = jax.tree.map(np.shape, run.params)
    assert shapes["embedding"] == (run.model_config.vocab_size, 16)
