"""Training in memory: the run of `train`, and several seeds at once as if one at a time."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from zerotollm.actions.train import train
from zerotollm.components import dataset_of, training_of
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.errors import RunError
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig
from zerotollm.run import load
from zerotollm.session import compiled_training
from zerotollm.session import train_in_memory as fit_module
from zerotollm.session.train_in_memory import Programs, compile_programs, fit
from zerotollm.training.config import OptimizerConfig, TrainConfig


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Experiment:
    folder = tmp_path_factory.mktemp("fit")
    rng = np.random.default_rng(0)
    words = ["sea", "ship", "wind", "star", "salt", "rope"]
    text = "\n\n".join(" ".join(rng.choice(words, 60)) for _ in range(60))
    (folder / "text.txt").write_text(text)
    return Experiment(
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "cache"), context=16, batch_size=4),
        tokenizer=TokenizerConfig(kind="char", byte_fallback=False),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2, dropout=0.1),
        optimizer=OptimizerConfig(block=0, warmup_steps=2),
        train=TrainConfig(steps=12),
    )


@pytest.fixture(scope="module")
def single(tiny) -> Programs:
    """For one seed at a time."""
    return compile_programs(tiny)


def test_is_the_run_of_train(tiny, single, tmp_path):
    (fitted,) = fit(single, [0])
    train(tiny, tmp_path / "run")
    run = load(tmp_path / "run")
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-6), fitted.params, run.params
    )
    assert fitted.validation["bpb"] == pytest.approx(run.metrics()[-1]["validation_bpb"], abs=1e-6)
    assert len(fitted.losses) == 12
    assert fitted.tokens_per_second > 0


def test_seeds_at_once_are_seeds_one_at_a_time(tiny, single):
    alone = [fit(single, [seed])[0] for seed in (3, 4)]
    together = fit(compile_programs(tiny, num_vmapped_seeds=2), [3, 4])
    for one, other in zip(alone, together, strict=True):
        assert one.seed == other.seed
        np.testing.assert_allclose(one.losses, other.losses, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one.params, other.params)
        assert one.validation["loss"] == pytest.approx(other.validation["loss"], abs=1e-5)
    assert alone[0].losses != alone[1].losses


def test_padding_is_what_the_tokenizer_pads_with(tiny, monkeypatch):
    """The pad id of an imported tokenizer is seldom 0. `train` compiles by the same function."""
    feed = replace(dataset_of(tiny), tokenizer=SimpleNamespace(pad_id=7))
    monkeypatch.setattr(fit_module, "dataset_of", lambda experiment: feed)
    seen = []

    def noted(experiment, pad_id):
        seen.append(pad_id)
        return training_of(experiment, pad_id)

    monkeypatch.setattr(compiled_training, "training_of", noted)
    compile_programs(tiny)
    assert seen == [7]


def test_a_loss_that_is_not_finite_stops_it(single):
    def beyond_all_bounds(seed, init_from):
        state = single.init(seed)
        return state._replace(params=jax.tree.map(lambda x: x * np.float32(1e30), state.params))

    with pytest.raises(RunError, match="no longer finite by step"):
        fit(replace(single, training=replace(single.training, init=beyond_all_bounds)), [0])
