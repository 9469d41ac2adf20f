"""A run that was trained for a few steps, on text that would break a page or a terminal that does not escape it."""

import random

import pytest

import zerotollm
from zerotollm.actions.train import train
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.decoding.config import SamplingConfig
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import TrainConfig

HOSTILE = "</script><img/src=x/onerror=alert(1)>"


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    draw = random.Random(1)
    words = ["heaven", "and", "earth", "were", "made", "[bold]of[/bold]", HOSTILE]
    paragraphs = [". ".join(" ".join(draw.choices(words, k=6)) for _ in range(12)) for _ in range(40)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    experiment = Experiment(
        name="tiny",
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "data"), context=32, batch_size=4),
        tokenizer=TokenizerConfig(vocab_size=310),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2),
        train=TrainConfig(steps=4, eval_every=2, checkpoint_every=2, sample_every=2, keep=2, log_every=2),
        sample=SamplingConfig(max_tokens=4),
    )
    train(experiment, folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="session")
def run(run_dir):
    return zerotollm.load(run_dir)
