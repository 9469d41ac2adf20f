"""Mixtures of corpora: shares of the training windows, tokens that weights do not change, and validation of each."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerotollm.actions import train as train_module
from zerotollm.actions.config import EvaluateOptions
from zerotollm.actions.evaluate import evaluate
from zerotollm.actions.train import train
from zerotollm.data.batches.mixtures import _place
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.feed import Feed, open_feed
from zerotollm.data.sources.weighted import weighted_sources
from zerotollm.data.tokens import text
from zerotollm.errors import UsageError
from zerotollm.evaluation.loss import evaluate_feed
from zerotollm.experiment import Experiment
from zerotollm.explain.reference import reference_text
from zerotollm.model.config import TransformerConfig
from zerotollm.run import load
from zerotollm.studies.suite import Variant
from zerotollm.studies.train_suite import prepare_data
from zerotollm.training.config import TrainConfig, due
from zerotollm.training.metrics import read_metrics

SETTINGS = TokenizerConfig(vocab_size=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mixture")
    for name, words, count in (("sea", "salt wind and rope", 400), ("sky", "stars in the dark", 100)):
        lines = (json.dumps({"text": f"{name} {i}: {words} {i * i}"}) + "\n" for i in range(count))
        (path / f"{name}.jsonl").write_text("".join(lines))
    return path


def feed_of(folder: Path, corpus: str, **fields) -> Feed:
    corpus = corpus.replace("sea", f"{folder}/sea.jsonl").replace("sky", f"{folder}/sky.jsonl")
    data = DataConfig(corpus, dir=str(folder / "data"), context=16, batch_size=8, **fields)
    return open_feed(data, SETTINGS)


def windows(feed: Feed, steps: int, **processes: int) -> list[np.ndarray]:
    batches = feed.training(seed=3, **processes)
    return [batches[step]["inputs"] for step in range(steps)]


@given(
    shares=st.lists(st.integers(1, 50), min_size=1, max_size=5).map(
        lambda w: [Fraction(x, sum(w)) for x in w]
    ),
    first=st.integers(0, 10**12),
)
def test_the_shares_hold_at_every_row_and_no_window_is_skipped(shares, first):
    def counts(row: int) -> list[int]:
        """Return the windows of each source before a row, from the places of this and later rows."""
        result: list[int | None] = [None] * len(shares)
        while None in result:
            number, window = _place(row, shares)
            if result[number] is None:
                result[number] = window
            row += 1
        return result

    before, used = counts(first), [0] * len(shares)
    assert sum(before) == first
    for row in range(first, first + 100):
        number, window = _place(row, shares)
        assert window == before[number] + used[number]
        used[number] += 1
        for share, count, start in zip(shares, used, before, strict=True):
            assert abs(start + count - share * (row + 1)) < len(shares)


def test_rows_come_from_the_sources_in_their_shares_whatever_the_processes(folder):
    feed = feed_of(folder, "sea*3 + sky")
    whole = windows(feed, 40)
    left = [[row for rows in windows(source, 40) for row in rows][::-1] for source in feed.sources]
    counts = [0, 0]
    for row in np.concatenate(whole):  # each is the next window of one source
        number = next(n for n in range(2) if (row == left[n][-1]).all())
        left[number].pop()
        counts[number] += 1
    assert counts == [240, 80]
    halves = [windows(feed, 40, process_index=p, process_count=2) for p in range(2)]
    for *parts, rows in zip(*halves, whole, strict=True):
        assert (np.concatenate(parts) == rows).all()
    again, other = feed.training(seed=3), feed.training(seed=4)
    assert all((again[step]["inputs"] == whole[step]).all() for step in (39, 5, 17)), (
        "a step depends on itself"
    )
    assert any((other[step]["inputs"] != whole[step]).any() for step in range(5))


def test_other_weights_change_the_batches_and_neither_tokens_nor_validation(folder, monkeypatch):
    first = feed_of(folder, "sea*3 + sky")
    monkeypatch.setattr(text, "write_split", None)  # nothing is tokenized again
    second = feed_of(folder, "sky*0.5 + sea")
    assert first.tokenizer == second.tokenizer
    assert first.fingerprint == second.fingerprint
    assert first.num_bytes["validation"] == second.num_bytes["validation"]
    left, right = (feed.evaluation("validation") for feed in (first, second))
    assert all((a["inputs"] == b["inputs"]).all() for a, b in zip(left, right, strict=True))
    assert {source.corpus.rpartition("/")[2]: source.share for source in second.sources} == {
        "sea.jsonl": pytest.approx(2 / 3),
        "sky.jsonl": pytest.approx(1 / 3),
    }
    assert sum(len(source.evaluation("validation")) for source in first.sources) == len(left)
    assert first.num_bytes["validation"] == sum(source.num_bytes["validation"] for source in first.sources)


def test_spans_are_hidden_in_every_source_too(folder):
    data = DataConfig(
        f"{folder}/sea.jsonl*3 + {folder}/sky.jsonl", dir=str(folder / "data"), context=16, batch_size=8
    )
    feed = open_feed(data, SETTINGS, objective="span_corruption", pairs=True)
    for denoised in (feed, *feed.sources):
        assert denoised.evaluation("validation")[0].keys() == {"sources", "inputs", "targets", "weights"}
    assert sum(s.num_bytes["validation"] for s in feed.sources) == pytest.approx(
        feed.num_bytes["validation"], rel=0.2
    )
    assert feed.vocab_size == feed.sources[0].vocab_size


def test_variants_of_a_suite_may_change_the_weights(folder):
    """Each variant reads its own corpus, and all are validated on the same text."""
    sea, sky = f"{folder}/sea.jsonl", f"{folder}/sky.jsonl"
    data = DataConfig(f"{sea} + {sky}", dir=str(folder / "data"), context=16, batch_size=8)
    base = Experiment(data=data, tokenizer=SETTINGS)
    more = replace(base, data=replace(data, corpus=f"{sea}*3 + {sky}"))
    variants = [
        Variant(name, "data", e, "none", "weights") for name, e in (("base", base), ("more-sea", more))
    ]
    first, second = prepare_data(variants).values()
    assert first == second


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1.2.3", "0.0"])
def test_weights_must_be_above_zero(weight):
    with pytest.raises(
        UsageError, match=f"the weight of shakespeare in .* is {weight}: expected a number above 0"
    ):
        weighted_sources(f"bible-web + shakespeare*{weight}")


def test_a_corpus_too_small_is_named(folder):
    (folder / "tiny.txt").write_text("A text of a line")
    with pytest.raises(
        UsageError, match=r"tiny.txt, in the mixture .* training tokens, and a window needs 17"
    ):
        feed_of(folder, f"sea + {folder}/tiny.txt")
    with pytest.raises(UsageError, match=r"names bible-web twice"):
        weighted_sources("bible-web + bible-web*2")


def test_names_with_plus_and_star_that_exist_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a + b.txt", "c*2", "d.txt", "e2"):
        Path(name).write_text("x")
    third = Fraction(1, 3)
    assert weighted_sources("a + b.txt") == {"a + b.txt": 1}
    assert weighted_sources("a + b.txt*2 + d.txt") == {"a + b.txt": 2 * third, "d.txt": third}
    assert weighted_sources("c*2 + d.txt") == {"c*2": Fraction(1, 2), "d.txt": Fraction(1, 2)}
    assert weighted_sources("*.txt*2 + e*") == {"*.txt": 2 * third, "e*": third}
    assert weighted_sources("sub/*2 + d.txt*0.5") == {"d.txt": third, "sub/*2": 2 * third}
    assert weighted_sources("bible-kjv+bible-asv:bible-bbe") == {"bible-kjv+bible-asv:bible-bbe": 1}


def test_a_folder_is_the_same_with_and_without_a_slash_at_its_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    Path("notes", "a.txt").write_text("x")
    half = Fraction(1, 2)
    for corpus in ("notes/*2 + bible-web*2", "notes*2 + bible-web*2"):
        assert weighted_sources(corpus) == {"notes": half, "bible-web": half}
    for corpus in ("notes/", "notes//", "notes/ + bible-web", "bible-web + notes/"):
        plain = corpus.replace("/", "")
        assert DataConfig(corpus=corpus, old=corpus) == DataConfig(corpus=plain, old=plain)
    assert DataConfig(corpus="/").corpus == "/"
    Path("notes", "b2").write_text("x")
    assert weighted_sources("notes/*2 + bible-web") == {"notes/*2": half, "bible-web": half}, "it is a glob"


def test_a_mixture_is_validated_apart_and_together(folder):
    """A model with uniform probabilities: nats are tokens."""
    feed = feed_of(folder, "sea*3 + sky")
    measured = evaluate_feed(
        lambda params, batch: {
            "nats": float(batch["weights"].sum()),
            "tokens": float(batch["weights"].sum()),
        },
        {},
        feed,
        "validation",
        SimpleNamespace(place_whole=lambda batch: batch),
    )
    bits = [s.evaluation_tokens - 1 for s in feed.sources]
    apart = [measured[f"bpb/{source.corpus}"] for source in feed.sources]
    expected = [n / math.log(2) / s.num_bytes["validation"] for n, s in zip(bits, feed.sources, strict=True)]
    assert apart == pytest.approx(expected)
    assert measured["bpb"] == pytest.approx(sum(bits) / math.log(2) / feed.num_bytes["validation"])
    assert measured["weighted_bpb"] == pytest.approx(0.75 * apart[0] + 0.25 * apart[1])
    assert measured["tokens"] == sum(bits)


def test_a_run_on_a_mixture_reports_each_source_and_resumes_bit_for_bit(
    folder, tmp_path, monkeypatch, capsys
):
    corpus = f"{folder}/sea.jsonl*3 + {folder}/sky.jsonl"
    experiment = Experiment(
        name="mixed",
        data=DataConfig(corpus, dir=str(folder / "data"), context=16, batch_size=4),
        tokenizer=SETTINGS,
        model=TransformerConfig(num_layers=1, width=16, num_heads=2),
        train=TrainConfig(steps=8, eval_every=4, checkpoint_every=3, sample_every=0, log_every=2),
    )
    summary = train(experiment, tmp_path / "whole")
    out = capsys.readouterr().out
    assert "epochs of " in out
    names = [f"validation_bpb/{folder}/{name}.jsonl" for name in ("sea", "sky")]
    assert summary["validation_weighted_bpb"] == pytest.approx(
        0.75 * summary[names[0]] + 0.25 * summary[names[1]]
    )
    lines = [line for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "validation_bpb" in line]
    assert len(lines) == 2
    assert all(set(names) < line.keys() for line in lines)

    def killed_at_5(step: int, *arguments, **options) -> bool:
        if step == 5:
            raise KeyboardInterrupt
        return due(step, *arguments, **options)

    monkeypatch.setattr(train_module, "due", killed_at_5)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "killed")
    monkeypatch.undo()
    train(experiment, tmp_path / "killed")
    assert "resuming after step" in " ".join(capsys.readouterr().out.split())
    killed, whole = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("killed", "whole"))
    assert [line | {"timing": 0} for line in killed] == [line | {"timing": 0} for line in whole]
    assert evaluate(experiment, tmp_path / "whole", EvaluateOptions())["weighted_bpb"] > 0
    run = load(tmp_path / "whole")
    reference = reference_text(run.trained, run.tokenizer)
    assert len(reference.held_out_N) == sum(s.evaluation_tokens for s in feed_of(folder, "sea + sky").sources)
