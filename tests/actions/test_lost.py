"""The share of text that the tokenizer loses is reported next to bits per byte, on the screen and in files."""

import json
from dataclasses import replace

import pytest

from zerotollm.actions.config import EvaluateOptions, PrepareOptions
from zerotollm.actions.evaluate import evaluate
from zerotollm.actions.prepare import prepare
from zerotollm.actions.train import train
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import TrainConfig

KNOWN, LOST = "the sea and the river " * 10, "\u5929 " * 20


def test_the_lost_share_is_reported_everywhere(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(KNOWN * 19 + KNOWN[: -len(LOST)] + LOST, encoding="utf-8")
    experiment = Experiment(
        name="tiny",
        data=DataConfig(
            corpus=str(tmp_path / "text.txt"),
            dir=str(tmp_path / "data"),
            context=16,
            batch_size=2,
            test_fraction=0.0,
        ),
        tokenizer=TokenizerConfig(kind="char", byte_fallback=False),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2),
        train=TrainConfig(steps=2, eval_every=1, checkpoint_every=0, sample_every=0),
    )
    share = 60 / (len(KNOWN) - len(LOST) + 80)  # twenty characters of three bytes, each with a space
    share_text = f"{100 * share:.3g} % of the validation bytes"
    prepare(experiment, tmp_path / "run", PrepareOptions())
    assert share_text in capsys.readouterr().out
    summary = train(experiment, tmp_path / "run")
    out = capsys.readouterr().out
    assert f"left out of {experiment.data.corpus}: {share_text}" in out
    assert "bits per byte that is not lost" in out
    assert f"{share_text}, by the tokenizer" in out
    assert summary["validation_lost"] == pytest.approx(share)
    assert summary["byte"] == "byte that is not lost"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["validation_lost"] for line in lines if "validation_bpb" in line} == {share}
    result = evaluate(experiment, tmp_path / "run", EvaluateOptions())
    assert result["lost"] == pytest.approx(share)
    assert result["bytes"] == len(KNOWN) - 20
    assert "bits per byte that is not lost" in capsys.readouterr().out
    plain = replace(experiment, tokenizer=TokenizerConfig(kind="char"))
    assert "lost" not in json.dumps(train(plain, tmp_path / "plain"))
