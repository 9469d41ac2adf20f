"""Planted sequences are in the text as often as asked, and only what was read is called remembered."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zerotollm.actions.canaries import canaries
from zerotollm.actions.config import CanariesOptions
from zerotollm.actions.train import train
from zerotollm.data.tokens.suffix_array import suffix_array
from zerotollm.errors import UsageError
from zerotollm.evaluation.likelihood import Likelihood
from zerotollm.studies.canaries import (
    CANDIDATES,
    EACH,
    PREFIX,
    SECRET,
    draw_canaries,
    plant,
    rank_secrets,
    summarize,
)

IDS = np.arange(100, 200)
DRAW = np.random.default_rng(0)


def test_each_canary_is_in_the_text_as_often_as_it_is_planted():
    text_N = DRAW.integers(0, 100, 5000).astype(np.uint16)
    drawn = draw_canaries(IDS, (0, 1, 10), seed=3)
    planted_N = plant(text_N, drawn, seed=3)
    index = suffix_array(planted_N)
    assert [canary.repetitions for canary in drawn] == [0] * EACH + [1] * EACH + [10] * EACH
    assert [index.count(canary.tokens_L) for canary in drawn] == [canary.repetitions for canary in drawn]
    np.testing.assert_array_equal(planted_N[planted_N < 100], text_N)
    assert planted_N.dtype == text_N.dtype
    assert not np.array_equal(plant(text_N, drawn, seed=4), planted_N)
    np.testing.assert_array_equal(plant(text_N, drawn[:EACH], seed=3), text_N)


def test_the_rank_is_that_of_the_secret_among_others():
    drawn = draw_canaries(IDS, (1,), seed=0)[:2]
    known = tuple(drawn[0].tokens_L)

    def score(texts):
        """Return scores by which the first secret is the likeliest and the second the least likely."""
        rows = [tuple(ids[1:]) for ids, _ in texts]
        assert all(
            size == SECRET and len(row) == PREFIX + SECRET for row, (_, size) in zip(rows, texts, strict=True)
        )
        assert all(ids[0] == 7 for ids, _ in texts)
        return [
            Likelihood(float(row == known) - float(row == tuple(drawn[1].tokens_L)), row == known)
            for row in rows
        ]

    ranks, greedy = rank_secrets(score, drawn, 7, IDS, seed=0)
    assert ranks.tolist() == [1, CANDIDATES]
    assert greedy.tolist() == [True, False]
    ranks, _ = rank_secrets(lambda texts: [Likelihood(0.0, False)] * len(texts), drawn, 7, IDS, seed=0)
    assert ranks.tolist() == [(CANDIDATES + 1) / 2] * 2  # all are as likely


def test_chance_is_not_called_remembered_and_few_remembered_ones_are():
    """100 draws each: uniform ranks, and one secret in three that is the likeliest."""
    shown = remembered = 0
    for k in range(100):
        random = np.random.default_rng(k)
        rank_RSC = random.integers(1, CANDIDATES + 1, (4, 3, EACH))
        answer = summarize((0, 1, 10, 100), rank_RSC, np.zeros(rank_RSC.shape, bool), 1.0)
        shown += any(exposure.p_value <= 0.05 for exposure in answer.exposures if exposure.repetitions)
        rank_RSC[1:][random.random((3, 3, EACH)) < 1 / 3] = 1
        answer = summarize((0, 1, 10, 100), rank_RSC, np.zeros(rank_RSC.shape, bool), 1.0)
        remembered += all(exposure.p_value <= 0.05 for exposure in answer.exposures[1:])
    print(
        f"\n| canaries: uniform ranks of 3 runs; a third of the sequences remembered | {100 - shown} | {remembered} |"
    )
    assert shown <= 5
    assert remembered >= 95


def test_a_model_remembers_what_it_read_often_and_not_what_it_did_not(tiny, tmp_path, capsys):
    answer = canaries(tiny, tmp_path, CanariesOptions(repetitions="1,60", seeds=1))
    none, once, often = answer.exposures
    assert (none.repetitions, once.repetitions, often.repetitions) == (0, 1, 60)
    assert none.p_value > 0.01
    assert often.p_value < 0.01
    assert often.bits.value > once.bits.value + 2
    assert answer.chance_bits == pytest.approx(1.44, abs=0.01)
    record = json.loads((tmp_path / "canaries/canaries.json").read_text(encoding="utf-8"))
    assert record["answer"]["exposures"][2]["bits"]["value"] == often.bits.value
    assert (tmp_path / "canaries/canaries.png").exists()
    assert "planted 60 times" in capsys.readouterr().out
    train(replace(tiny, train=replace(tiny.train, steps=2)), tmp_path)  # the folder does not stand in the way


@pytest.mark.parametrize("repetitions", ["", "0", "1,x", "1,1", "-2"])
def test_numbers_of_repetitions_are_checked_at_once(tiny, tmp_path, repetitions):
    with pytest.raises(UsageError, match="--repetitions is"):
        canaries(tiny, tmp_path, CanariesOptions(repetitions=repetitions))


def test_other_experiments_are_refused_in_one_line(tiny, tmp_path):
    with pytest.raises(UsageError, match="--seeds is 0"):
        canaries(tiny, tmp_path, CanariesOptions(seeds=0))
    other = tmp_path / "other.txt"
    other.write_text(Path(tiny.data.corpus).read_text("utf-8").replace("king", "duke"), "utf-8")
    data = replace(tiny.data, corpus=f"{tiny.data.corpus} + {other}*2")
    with pytest.raises(UsageError, match="mixture"):
        canaries(replace(tiny, data=data), tmp_path, CanariesOptions())
    labels = replace(tiny, train=replace(tiny.train, objective="label"))
    with pytest.raises(UsageError, match="not a built-in decoder trained on plain text"):
        canaries(labels, tmp_path, CanariesOptions())
