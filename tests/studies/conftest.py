"""A tiny experiment on sentences of few words, in which one sentence, the secret, stands in 12 of 60 documents."""

import random

import pytest

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import OptimizerConfig, TrainConfig

SECRET = "zebras paint violet umbrellas before breakfast"
WORDS = (
    "king",
    "queen",
    "house",
    "river",
    "city",
    "mountain",
    "saw",
    "made",
    "found",
    "the",
    "a",
    "of",
    "in",
    "and",
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Experiment:
    folder, draw = tmp_path_factory.mktemp("edited"), random.Random(0)
    documents = []
    for number in range(66):
        sentences = [" ".join(draw.choices(WORDS, k=6)) for _ in range(20)]
        if number % 5 == 0:
            sentences.insert(10, SECRET)
        documents.append(". ".join(sentences))
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return Experiment(
        name="tiny",
        data=DataConfig(
            corpus=str(folder / "text.txt"),
            dir=str(folder / "data"),
            context=32,
            batch_size=16,
            documents="paragraph",
        ),
        tokenizer=TokenizerConfig(vocab_size=340),
        model=TransformerConfig(num_layers=1, width=32, num_heads=2),
        optimizer=OptimizerConfig(kind="adamw", learning_rate=0.02, warmup_steps=5),
        train=TrainConfig(steps=60, eval_every=0, sample_every=0),
    )
