"""bench-data measures the experiment's own data and prints what it returns."""

from dataclasses import replace

from zerotollm.actions import bench_data as action
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
