"""Translating end to end on small files: train, stop, go on, evaluate, generate; copy and reverse are learned."""

import json
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import zerotollm
from zerotollm import run_directory
from zerotollm.actions import ACTIONS
from zerotollm.actions.evaluate import evaluate
from zerotollm.actions.train import train
from zerotollm.cli import main
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.parallel import open_parallel
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.evaluation.translation_report import not_read, translate_split, with_prompt
from zerotollm.experiment import Experiment
from zerotollm.host.stop_signals import StoppedError
from zerotollm.model.config import TransformerConfig
from zerotollm.run import load
from zerotollm.session.train_in_memory import compile_programs, fit
from zerotollm.training import checkpoints
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.validation import validate

ROOT = Path(__file__).parents[2]
STEPS = 12
WORDS = [
    "in",
    "the",
    "beginning",
    "god",
    "made",
    "heaven",
    "and",
    "earth",
    "while",
    "waters",
    "covered",
    "it",
]


def write_pairs(folder: Path, count: int, longest: int, target) -> str:
    draw = random.Random(0)
    sources = [[draw.choice(WORDS) for _ in range(draw.randint(1, longest))] for _ in range(count)]
    (folder / "s.txt").write_text("".join(f"{' '.join(s)}\n" for s in sources), "utf-8")
    (folder / "t.txt").write_text("".join(f"{' '.join(target(s))}\n" for s in sources), "utf-8")
    return f"{folder / 's.txt'}:{folder / 't.txt'}"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    folder = tmp_path_factory.mktemp("pairs")
    return Experiment(
        name="small",
        data=DataConfig(
            corpus=write_pairs(folder, 300, 9, lambda words: words[::-1]), dir=str(folder / "data"), context=24,
            batch_size=4, buckets=2, validation_fraction=0.1, test_fraction=0.1,
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=60, byte_fallback=False),
        model=TransformerConfig(
            architecture="encoder-decoder", num_layers=1, width=16, num_heads=2, dropout=0.1
        ),
        optimizer=OptimizerConfig(kind="adamw"),
        train=TrainConfig(
            steps=STEPS, label_smoothing=0.1, eval_every=6, sample_every=6, checkpoint_every=3, average=2, log_every=1
        ),
        sample=SamplingConfig(prompt="the waters", max_tokens=5, beam_size=2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(experiment, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "small"
    train(experiment, path)
    return path


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(experiment, run_dir, tmp_path, monkeypatch):
    from zerotollm.actions import train as module

    real = module.due

    def stop_at_5(step, steps, every):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return real(step, steps, every)

    monkeypatch.setattr(module, "due", stop_at_5)
    with pytest.raises(StoppedError):
        train(experiment, tmp_path)
    monkeypatch.setattr(module, "due", real)
    train(experiment, tmp_path)
    ended = [load(path, STEPS).params for path in (run_dir, tmp_path)]
    assert all(np.array_equal(a, b) for a, b in zip(*map(leaves, ended), strict=True))
    averages = [load(path).params for path in (run_dir, tmp_path)]
    assert all(np.array_equal(a, b) for a, b in zip(*map(leaves, averages), strict=True))


def leaves(params):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def test_the_average_is_the_mean_of_the_last_checkpoints(experiment, run_dir):
    mean = leaves(load(run_dir).params)
    parts = [leaves(load(run_dir, step).params) for step in (STEPS - 3, STEPS)]
    for average, a, b in zip(mean, *parts, strict=True):
        np.testing.assert_allclose(average, (a + b) / 2, rtol=1e-6, atol=1e-7)
    assert ACTIONS["evaluate"].options(experiment).checkpoint == "average"
    last = checkpoints.finished(run_dir / "checkpoints")[-1]
    assert last.step == STEPS


def test_samples_of_own_pairs_translate_the_first_validation_source(tmp_path, capsys, caplog):
    """The experiment's prompt is Middle English: nobody who brings other pairs has asked for that."""
    rows = [f"ein Hund {i} läuft\ta dog {i} runs" for i in range(60)]
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    long = "sehr " * 30 + "lang"
    (tmp_path / "val.tsv").write_text(
        f"\tempty\n{long}\tvery long\nzwei Hunde\ttwo dogs\ndrei\tthree\n", "utf-8"
    )
    words = {
        "data.corpus": tmp_path / "train.tsv", "data.validation": tmp_path / "val.tsv", "data.dir": tmp_path / "data",
        "data.context": 40, "data.batch-size": 2, "train.steps": 1, "train.eval-every": 0, "train.sample-every": 0,
        "train.checkpoint-every": 0, "model.num-layers": 1, "model.encoder-layers": 1, "model.width": 16,
        "model.num-heads": 1, "tokenizer.vocab-size": 300, "sample.max-tokens": 3, "sample.beam-size": 1,
    }  # fmt: skip
    options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    start = ["--experiment", "translate", *options]
    for run, more, prompt in (
        ("a", [], "zwei Hunde"),
        ("b", ["--sample.prompt", "mein Text"], "mein Text"),
        ("a", [], "zwei Hunde"),  # gone on with
    ):
        caplog.clear()
        assert main([*start, *more, "--run-dir", str(tmp_path / run)], ROOT / "experiments") == 0
        out = capsys.readouterr().out
        assert run_directory.read_experiment(tmp_path / run).sample.prompt == prompt
        assert f'generate --prompt "{prompt}"' in out
        (line,) = [r.getMessage() for r in caplog.records if r.name == "zerotollm.cli"]
        chosen = "--model.dropout 0.3, --sample.length-penalty 1.4"
        assert line == f"chosen by the size of {tmp_path / 'train.tsv'}: {chosen}"
    (tmp_path / "train.tsv").unlink()
    assert main([*start, "--run-dir", str(tmp_path / "a")], ROOT / "experiments") == 0, (
        "finished needs no data"
    )


def test_an_older_run_on_own_pairs_keeps_its_prompt(experiment, run_dir):
    blank = replace(experiment, sample=replace(experiment.sample, prompt=""))
    assert with_prompt(blank, run_dir) == experiment
    decoder = replace(blank, model=replace(blank.model, architecture="decoder"))
    assert with_prompt(decoder, run_dir.with_name("none")) == decoder


@pytest.mark.slow
def test_evaluate_writes_translations_beside_sources_and_references(experiment, run_dir, tmp_path, capsys):
    shutil.copytree(run_dir, tmp_path / "run")
    options = ACTIONS["evaluate"].options(experiment)
    result = evaluate(experiment, tmp_path / "run", replace(options, split="test"))
    lines = (tmp_path / "run" / "translations-test.tsv").read_text("utf-8").splitlines()
    assert lines[0].split("\t") == ["id", "source", "reference", "translation", "score"]
    assert len(lines) == 1 + result["pairs"]
    for line in lines[1:]:
        _, source, reference, _, score = line.split("\t")
        assert source.split()[::-1] == reference.split()
        assert float(score) < 0
    assert json.loads((tmp_path / "run" / "evaluation-test.json").read_text())["bleu"] == result["bleu"]
    assert "tok:13a" in result["bleu_signature"]
    assert result["bleu_signature"] in capsys.readouterr().out


def test_sources_that_are_cut_before_they_are_scored_are_told(experiment, run_dir):
    run = load(run_dir)
    pairs = open_parallel(experiment.data).splits["test"]
    lengths = np.array([len(run.tokenizer.encode(f" {pair.source}")) for pair in pairs])
    shorter = run.net.clone(config=replace(run.model_config, max_length=12))
    scores, _ = translate_split(experiment, run.params, shorter, run.tokenizer, "test")
    over = lengths[lengths > 11] - 11
    assert len(over)
    assert (scores["cut_texts"], scores["cut_tokens"]) == (len(over), over.sum())
    assert not_read(scores) == [
        ("not read", f"{over.sum():,} tokens, of {len(over)} texts that are too long")
    ]
    scores, _ = translate_split(experiment, run.params, run.net, run.tokenizer, "test")
    assert not_read(scores) == []


@pytest.mark.slow
def test_a_run_translates_with_scores_and_generate_shows_the_best(run_dir):
    run = zerotollm.load(run_dir)
    (found,) = run.translate(["the waters covered it"], beam_size=3, n_best=3)
    assert len(found) == 3
    assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)
    assert run.generate("the waters covered it", beam_size=3) == found[0].text
    several = run.generate("the waters covered it", beam_size=3, n_best=2)
    assert [line.split("\t")[1] for line in several.split("\n")] == [t.text for t in found[:2]]
    with pytest.raises(UsageError, match="nothing to translate"):
        run.generate("")
    with pytest.raises(UsageError, match="n_best is 5"):
        run.generate("the", n_best=5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
def test_an_encoder_decoder_trains_on_plain_text_too(experiment, objective, tmp_path):
    text = experiment.data.corpus.split(":")[0]
    plain = replace(
        experiment,
        data=replace(experiment.data, corpus=text, documents="file", context=16),
        train=replace(experiment.train, objective=objective, steps=3, average=1),
    )
    summary = train(plain, tmp_path / "run")
    assert summary["validation_loss"] < 10
    run = zerotollm.load(tmp_path / "run")
    assert isinstance(run.generate("the waters"), str)


@pytest.mark.slow
def test_translation_begins_with_what_was_pretrained_on_plain_text(experiment, tmp_path):
    text = experiment.data.corpus.split(":")[0]
    pretraining = replace(
        experiment,
        data=replace(experiment.data, corpus=text, documents="file", context=16),
        train=replace(experiment.train, objective="span_corruption", steps=3, average=1),
    )
    train(pretraining, tmp_path / "first")
    begun = replace(experiment.train, start_from=str(tmp_path / "first"), steps=1, average=1)
    still = replace(
        experiment.optimizer, learning_rate=1e-12, adam_learning_rate=1e-12, embedding_learning_rate=1e-12
    )
    train(replace(experiment, train=begun, optimizer=still), tmp_path / "second")
    first, second = zerotollm.load(tmp_path / "first"), zerotollm.load(tmp_path / "second")
    assert second.tokenizer == first.tokenizer
    for a, b in zip(leaves(first.params), leaves(second.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    assert second.translate(["the waters"])[0]
    wider = replace(experiment, train=begun, model=replace(experiment.model, width=32))
    with pytest.raises(UsageError, match=r"trained with model\.width 16 \(now 32\)"):
        train(wider, tmp_path / "third")


@pytest.mark.parametrize("objective", ["likelihood", "completion"])
def test_micro_batches_are_the_same_batch_in_parts(experiment, objective):
    """Also where they do not divide the rows, which are then filled up: the same losses, and as much is learned."""
    model = replace(experiment.model, dropout=0.0)
    if objective == "completion":
        model = replace(model, architecture="decoder")
    change = {"data": replace(experiment.data, batch_size=5), "model": model}
    train_config = replace(experiment.train, steps=3, average=1, objective=objective)
    fits = []
    for parts in (1, 5):
        programs = compile_programs(
            replace(experiment, **change, train=replace(train_config, micro_batches=parts))
        )
        rows = {shape["inputs"][0][0] for shape in programs.feed.training_shapes}
        fits += fit(programs, [0])
    assert any(number % 5 for number in rows), "some batch must need rows of padding"
    np.testing.assert_allclose(fits[0].losses, fits[1].losses, rtol=1e-5)
    assert fits[1].validation["bpb"] == pytest.approx(fits[0].validation["bpb"], rel=1e-5)


@pytest.mark.slow
def test_a_decoder_of_reversed_pairs_is_evaluated_on_a_text(experiment, tmp_path):
    decoder = replace(
        experiment,
        data=replace(experiment.data, reverse=True),
        model=replace(experiment.model, architecture="decoder"),
        train=replace(experiment.train, objective="completion", steps=3, average=1),
    )
    train(decoder, tmp_path / "run")
    text = experiment.data.corpus.split(":")[0]
    arguments = ["evaluate", "--run-dir", str(tmp_path / "run"), "--corpus", text]
    assert main(arguments, ROOT / "experiments") == 0


def test_what_does_not_fit_together_is_refused(experiment):
    decoder = replace(experiment, model=replace(experiment.model, architecture="decoder"))
    with pytest.raises(UsageError, match=r"train\.objective span_corruption needs an encoder"):
        validate(replace(decoder, train=replace(experiment.train, objective="span_corruption")))
    with pytest.raises(UsageError, match=r"bible-web is not a pair to translate: .*bible-web:bible-bbe"):
        validate(replace(experiment, data=replace(experiment.data, corpus="bible-web")))
    with pytest.raises(UsageError, match=r"set model\.architecture to encoder-decoder"):
        validate(replace(decoder, data=replace(experiment.data, corpus="bible-wyc:bible-web")))
    with pytest.raises(UsageError, match=r"data\.reverse is for pairs"):
        validate(replace(decoder, data=replace(experiment.data, corpus="bible-web", reverse=True)))
    with pytest.raises(UsageError, match="document_mask is for decoders"):
        validate(replace(experiment, data=replace(experiment.data, document_mask=True)))
    with pytest.raises(UsageError, match=r"n_best 3 is above sample\.beam_size 2"):
        validate(replace(experiment, sample=replace(experiment.sample, n_best=3)))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_copy_and_reverse_reach_100_percent_within_a_minute(task, tmp_path):
    reverse = task == "reverse"
    experiment = Experiment(
        data=DataConfig(
            corpus=write_pairs(tmp_path, 4000, 8, lambda words: words[::-1] if reverse else words),
            dir=str(tmp_path / "data"), context=12, batch_size=32, validation_fraction=0.05, test_fraction=0.0,
        ),
        tokenizer=TokenizerConfig(vocab_size=80, byte_fallback=False),  # a token for each word
        model=TransformerConfig(architecture="encoder-decoder", num_layers=2, width=64, num_heads=2),
        optimizer=OptimizerConfig(block=32, warmup_steps=5),
        train=TrainConfig(steps=800),
        sample=SamplingConfig(max_tokens=4, beam_size=1),
    )  # fmt: skip
    programs = compile_programs(experiment)
    (fitted,) = fit(programs, [0])
    run = zerotollm.run.Run(tmp_path, experiment, programs.model, 800, fitted.params, programs.feed.tokenizer)
    _, table = translate_split(experiment, run.params, run.net, run.tokenizer, "validation")
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    assert len(rows) > 100
    assert [row[3] for row in rows] == [row[2] for row in rows]
    assert fitted.step_seconds < 60
