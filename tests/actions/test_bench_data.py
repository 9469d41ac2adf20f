"""bench-data measures the experiment's own data and prints what it returns."""

from dataclasses import replace

from zerotollm.actions import bench_data as action
from zerotollm.components import dataset_of
from zerotollm.data.config import TokenizerConfig
from zerotollm.experiment import Experiment


def test_rates_are_measured_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(action, "SECONDS", 0.01)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {n} of the sea and the sky.\n" for n in range(2000)), "utf-8")
    parent = Experiment()
    experiment = replace(
        parent,
        data=replace(parent.data, corpus=str(text), dir=str(tmp_path / "cache")),
        tokenizer=TokenizerConfig(vocab_size=300),
    )
    result = action.bench_data(experiment, tmp_path / "run")
    assert min(result.values()) > 0
    ratio = result["sentencepiece_mb_per_second"] / result["tokenizer_mb_per_second"]
    assert abs(result["tokenizer_time_ratio"] - ratio) < 1e-9
    shown = capsys.readouterr().out
    assert f"{result['batch_tokens_per_second']:,.0f} tokens/s" in shown
    assert f"{result['tokenizer_time_ratio']:.2f} x" in shown
    assert not (tmp_path / "run").exists()


def test_the_batches_of_a_mixture_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(action, "SECONDS", 0.01)
    read = []
    monkeypatch.setattr(
        action, "_batches_per_second", lambda batches: read.append(batches[0]["inputs"]) or 1.0
    )
    for name, letter in (("first", "a"), ("second", "b")):
        words = "".join(f"{letter * 3} {letter * (1 + n % 4)}.\n" for n in range(4000))
        (tmp_path / f"{name}.txt").write_text(words, "utf-8")
    experiment = Experiment()
    corpus = f"{tmp_path / 'first.txt'} + {tmp_path / 'second.txt'}"
    experiment = replace(
        experiment,
        data=replace(experiment.data, corpus=corpus, dir=str(tmp_path / "cache")),
        tokenizer=TokenizerConfig(vocab_size=270),
    )
    action.bench_data(experiment, tmp_path / "run")
    feed = dataset_of(experiment)
    texts = [feed.tokenizer.decode(row) for row in read[0]]
    assert {letter for text in texts for letter in "ab" if letter in text} == {"a", "b"}
