"""Fine-tuning end to end on tiny texts: what is taken over of another run, what is trained, measured and refused."""

import json
import random
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest

import zerotollm
from zerotollm.actions.config import EvaluateOptions
from zerotollm.actions.evaluate import evaluate
from zerotollm.actions.train import train
from zerotollm.cli import main
from zerotollm.data.batches.mixtures import replayed
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.examples import open_examples
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, inherit_model, translates
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.lora import flatten_params
from zerotollm.training.parameter_transfer import transfer_params
from zerotollm.validation import validate

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
WORDS = {
    "old": ["in", "the", "beginning", "god", "created", "heaven", "and", "earth"],
    "sea": ["ship", "wave", "sail", "anchor", "tide", "rope"],
    "sky": ["star", "moon", "cloud", "bird", "wind", "sun"],
    "o": ["god", "good", "dog", "o"],
    "e": ["heaven", "even", "have", "he"],
}


def written(kind: str, count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS[kind], k=30)) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    for kind in ("old", "sea", "sky"):
        (folder / f"{kind}.txt").write_text("\n\n".join(written(kind, 60)), encoding="utf-8")
    rows = [{"text": text, "label": kind} for kind in "eo" for text in written(kind, 60, seed=1)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base(folder) -> Experiment:
    """A finished run in FOLDER/base."""
    experiment = Experiment(
        name="old",
        data=DataConfig(
            corpus=str(folder / "old.txt"),
            dir=str(folder / "data"),
            documents="paragraph",
            context=16,
            batch_size=4,
        ),
        tokenizer=TokenizerConfig(kind="char", vocab_size=300),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2),
        optimizer=OptimizerConfig(kind="adamw", learning_rate=0.01, warmup_steps=2),
        train=TrainConfig(steps=12, eval_every=0, sample_every=0, checkpoint_every=0, log_every=4),
        sample=SamplingConfig(max_tokens=5),
    )
    train(experiment, folder / "base")
    return experiment


def subject(base: Experiment, folder: Path, **fields) -> Experiment:
    data = replace(base.data, corpus=str(folder / "sea.txt"), old=str(folder / "old.txt"), replay=0.25)
    begun = replace(base.train, start_from=str(folder / "base"), **fields)
    return replace(base, name="sea", data=data, train=begun)


def flat(params) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_params(params)}


@pytest.fixture(scope="module")
def sea(base, folder) -> dict:
    """The summary of a run on a new text, in FOLDER/sea."""
    return train(subject(base, folder), folder / "sea")


def test_a_new_subject_is_measured_before_and_after_and_so_is_the_old_one(sea, folder):
    summary = sea
    first = json.loads((folder / "base" / "summary.json").read_text())
    assert summary["before"]["old_bpb"] == pytest.approx(first["validation_bpb"], rel=1e-5)
    assert summary["validation_bpb"] < summary["before"]["bpb"]
    assert summary["validation_old_bpb"] > 0
    run = zerotollm.load(folder / "sea")
    assert run.tokenizer == zerotollm.load(folder / "base").tokenizer
    lines = [line for line in run.metrics() if "validation_bpb" in line]
    assert lines[-1]["validation_old_bpb"] == summary["validation_old_bpb"]


@pytest.fixture(scope="module")
def adapted(base, folder) -> Experiment:
    """Adapters in FOLDER/adapted."""
    experiment = subject(base, folder, lora_rank=2, checkpoint_every=6, keep=3)
    train(experiment, folder / "adapted")
    return experiment


def test_a_run_of_adapters_keeps_these_alone_and_opens_as_the_merged_model(adapted, folder):
    summary = json.loads((folder / "adapted" / "summary.json").read_text())
    whole, merged = zerotollm.load(folder / "base"), zerotollm.load(folder / "adapted")
    assert (
        summary["trained_parameters"] < summary["parameters"] == whole.num_parameters == merged.num_parameters
    )
    before, after = flat(whole.params), flat(merged.params)
    changed = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    assert changed == {path for path, x in before.items() if x.ndim == 2 and "layer_0/" in path}
    assert isinstance(merged.generate("sh"), str)
    import orbax.checkpoint as ocp

    saved = ocp.StandardCheckpointer().restore((folder / "adapted/checkpoints/00000012/state").absolute())
    assert sum(x.size for x in jax.tree.leaves(saved["params"])) == summary["trained_parameters"]


def test_a_run_of_adapters_goes_on_where_it_stopped(adapted, folder, tmp_path):
    shutil.copytree(folder / "adapted", tmp_path / "again")
    (tmp_path / "again" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "00000012")
    train(adapted, tmp_path / "again")
    ours, theirs = zerotollm.load(tmp_path / "again"), zerotollm.load(folder / "adapted")
    assert ours.step == theirs.step == 12
    assert all(flat(ours.params)[path].tobytes() == x.tobytes() for path, x in flat(theirs.params).items())


def test_what_adapters_were_trained_beside_must_not_have_changed(adapted, sea, folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder / "adapted", moved)
    config = (moved / "config.json").read_text().replace(str(folder / "base"), str(tmp_path / "nowhere"))
    (moved / "config.json").write_text(config)
    with pytest.raises(UsageError, match=r"holds only what it trained beside .*nowhere"):
        zerotollm.load(moved)
    shutil.copytree(folder / "sea", tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"nowhere has changed since"):
        zerotollm.load(moved)


def test_adapters_open_from_anywhere_and_know_their_base_by_its_parameters(
    base, adapted, sea, folder, tmp_path, monkeypatch
):
    """Relative to a working directory in which they were trained, moved together with the base, and in another
    directory that holds another run of the base's name."""
    here = tmp_path / "here"
    shutil.copytree(folder / "base", here / "runs" / "start")
    monkeypatch.chdir(here)
    relative = replace(adapted, train=replace(adapted.train, start_from="runs/start"))
    trained = train(relative, Path("runs/lora"))
    expected = flat(zerotollm.load("runs/lora").params)
    (here / "runs" / "lora" / "summary.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert train(relative, here / "runs" / "lora")["validation_bpb"] == trained["validation_bpb"]  # goes on
    here.rename(tmp_path / "moved")
    shutil.copytree(folder / "sea", tmp_path / "runs" / "start")
    evaluated = ["--run-dir", str(tmp_path / "moved/runs/lora"), "evaluate"]
    assert main(evaluated, EXPERIMENTS) == 0
    for note in ("with", "without"):
        run = zerotollm.load(tmp_path / "moved" / "runs" / "lora")
        assert run.experiment.train.start_from == str(tmp_path / "moved/runs/start"), note
        assert all(flat(run.params)[path].tobytes() == x.tobytes() for path, x in expected.items())
        (tmp_path / "moved/runs/lora/environment.json").unlink(missing_ok=True)


@pytest.mark.slow
def test_adapters_are_stacked_on_a_run_of_adapters(adapted, folder):
    second = replace(adapted, train=replace(adapted.train, start_from=str(folder / "adapted"), steps=2))
    train(second, folder / "stacked")
    once, twice = zerotollm.load(folder / "adapted"), zerotollm.load(folder / "stacked")
    path = "layer_0/attention/query"
    assert (flat(once.params)[path] != flat(twice.params)[path]).any()
    assert (flat(once.params)["head"] == flat(twice.params)["head"]).all()


@pytest.fixture(scope="module")
def labelled(base, folder) -> Experiment:
    """A run that labels texts, in FOLDER/labelled, initialized from FOLDER/base."""
    data = replace(base.data, corpus=str(folder / "labels.jsonl"), context=64, buckets=1)
    begun = replace(base.train, start_from=str(folder / "base"), objective="label", steps=30, eval_every=15)
    faster = replace(base.optimizer, learning_rate=0.03)
    experiment = replace(base, name="labelled", data=data, train=begun, optimizer=faster)
    train(experiment, folder / "labelled")
    return experiment


def test_labels_are_learned_by_a_new_head_on_the_given_model(labelled, folder):
    summary = json.loads((folder / "labelled" / "summary.json").read_text())
    assert summary["validation_accuracy"] > 0.9
    run = zerotollm.load(folder / "labelled")
    assert run.labels == ("e", "o")
    assert flat(run.params)["classifier"].shape == (16, 2)
    assert "head" not in flat(run.params)
    found = run.classify(["heaven have even he heaven.", "god good o dog o god."])
    assert [next(iter(probabilities)) for probabilities in found] == ["e", "o"]
    assert sum(found[0].values()) == pytest.approx(1.0)
    with pytest.raises(UsageError, match="labels texts and writes none"):
        run.generate("god")


def test_evaluate_puts_the_labels_beside_a_baseline_and_draws_them(labelled, folder, capsys):
    pytest.importorskip("sklearn", reason="the baseline is scikit-learn's, a development requirement")
    result = evaluate(labelled, folder / "labelled", EvaluateOptions(split="test"))
    scores = result["labels"]
    assert scores["accuracy"] == result["accuracy"]
    assert np.sum(scores["confusion"]) == scores["examples"] == result["tokens"]
    assert scores["baseline"]["accuracy"] > 0.9
    assert (folder / "labelled" / "confusion-test.png").read_bytes().startswith(b"\x89PNG")
    assert "Plotly.newPlot" in (folder / "labelled" / "confusion-test.html").read_text()
    assert json.loads((folder / "labelled" / "confusion-test.json").read_text()) == scores
    assert "TF-IDF" in capsys.readouterr().out


def test_texts_that_are_cut_before_they_are_labelled_are_told(labelled, folder, tmp_path, capsys):
    run = zerotollm.load(folder / "labelled")
    shorter = replace(labelled, data=replace(labelled.data, context=8))
    result = evaluate(shorter, folder / "labelled", EvaluateOptions(split="test"))["labels"]
    examples = open_examples(labelled.data, "label").splits["test"]
    over = [1 + len(run.tokenizer.encode(example.parts[0].text)) - 8 for example in examples]
    over = [tokens for tokens in over if tokens > 0]
    assert over
    assert (result["cut_texts"], result["cut_tokens"]) == (len(over), sum(over))
    said = f"{sum(over):,} tokens, of {len(over):,} texts that are too long"
    assert said in capsys.readouterr().out
    train(replace(shorter, train=replace(labelled.train, steps=1)), tmp_path / "shorter")
    assert "cut to data.context 8: " in capsys.readouterr().out
    longer = replace(labelled, data=replace(labelled.data, context=256))
    whole = evaluate(longer, folder / "labelled", EvaluateOptions(split="test"))["labels"]
    assert "cut_texts" not in whole
    assert "not read" not in capsys.readouterr().out


def test_what_does_not_fit_is_refused_with_its_name(base, folder, tmp_path):
    def begun(**model) -> Experiment:
        data = replace(base.data, corpus=str(folder / "sea.txt"))
        start = replace(base.train, start_from=str(folder / "base"))
        return replace(base, name="bad", data=data, train=start, model=replace(base.model, **model))

    with pytest.raises(UsageError, match=r"trained with model\.num_layers 1 \(now 2\)"):
        train(begun(num_layers=2), tmp_path / "a")
    with pytest.raises(UsageError, match=r"model\.vocab_size 64 .*|vocab_size"):
        train(begun(vocab_size=512), tmp_path / "b")

    run = zerotollm.load(folder / "base")
    fewer = {name: leaf for name, leaf in run.params.items() if name != "head"}
    with pytest.raises(
        UsageError, match=r"base has no tensor head, and this model needs one of shape \(16, \d+\)"
    ):
        transfer_params(fewer, run.net, "base", same_labels=True)
    narrow = run.params | {"head": run.params["head"][:, :8]}
    with pytest.raises(
        UsageError, match=r"the tensor head has shape \(16, 8\), and this model needs \(16, \d+\)"
    ):
        transfer_params(narrow, run.net, "base", same_labels=True)
    with pytest.raises(UsageError, match=r"base has a tensor more, and this model has none of that name"):
        transfer_params(run.params | {"more": run.params["head"]}, run.net, "base", same_labels=True)


def test_a_model_of_transformers_must_be_imported_first(base, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UsageError, match=r"is a model of transformers .*import-model --folder"):
        zerotollm.load(tmp_path)


def test_the_command_line_takes_the_model_of_the_run_that_it_begins_with(base, folder, tmp_path, capsys):
    begin = ["--experiment", "finetune_subject", "--init-from"]
    fields = {
        "run-dir": tmp_path / "r",
        "data.corpus": folder / "sky.txt",
        "data.old": "",
        "data.dir": folder / "data",
        "data.context": 16,
        "optimizer.kind": "adamw",
        "train.steps": 2,
        "sample.prompt": "the",
    }
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    assert main([*begin, str(folder / "base"), *words], EXPERIMENTS) == 0
    run = zerotollm.load(tmp_path / "r")
    assert run.experiment.model == base.model
    assert run.experiment.tokenizer == base.tokenizer
    assert run.experiment.train.start_from == str(folder / "base")
    assert main([*begin, str(tmp_path / "none"), *words], EXPERIMENTS) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_options_that_need_a_start_or_an_old_text_say_so(base):
    for fields, message in (
        (
            {"train": replace(base.train, lora_rank=2)},
            r"train\.lora_rank needs a pretrained model: add --init-from RUN",
        ),
        ({"train": replace(base.train, trainable="head")}, r"train\.trainable needs a pretrained model"),
        (
            {"train": replace(base.train, start_from="x", trainable="(")},
            r"train\.trainable is not a regular expression",
        ),
        ({"data": replace(base.data, replay=0.5)}, r"data\.replay is the fraction of steps"),
        ({"data": replace(base.data, replay=1.0, old="x")}, r"data\.replay is 1\.0, and must be below 1"),
        ({"model": replace(base.model, num_classes=3)}, r"model\.num_classes is the number of labels"),
    ):
        with pytest.raises(UsageError, match=message):
            validate(replace(base, **fields))


def test_a_model_with_learned_positions_keeps_as_many_as_it_has(base):
    learned = replace(base, model=replace(base.model, position="learned"))
    begun = inherit_model(replace(base, data=replace(base.data, context=8)), learned)
    assert begun.model.max_length == base.data.context


def test_a_new_tokenizer_is_made_of_the_new_text_and_the_model_begins_with_what_it_knows(base, folder):
    fields = {"start_tokenizer": "new", "steps": 4}
    experiment = subject(base, folder, **fields)
    begun = inherit_model(experiment, zerotollm.load(folder / "base").experiment)
    validate(begun)
    summary = train(begun, folder / "new-tokenizer")
    run = zerotollm.load(folder / "new-tokenizer")
    before = zerotollm.load(folder / "base")
    assert run.tokenizer != before.tokenizer
    same = train(subject(base, folder, steps=4), folder / "same-tokenizer")
    assert summary["before"]["bpb"] == pytest.approx(same["before"]["bpb"], abs=1)  # it knows the letters
    assert "sea" in run.explain("sea sail").text
    again = train(begun, folder / "new-tokenizer")
    assert again["validation_bpb"] == summary["validation_bpb"]
    for refused in ({"lora_rank": 2}, {"trainable": "head"}):
        with pytest.raises(UsageError, match=r"train\.start_tokenizer"):
            validate(replace(begun, train=replace(begun.train, **refused)))


@pytest.mark.slow
def test_a_decoder_learns_to_translate_and_is_scored(base, folder):
    for side, words in (("source", WORDS["o"]), ("target", WORDS["e"])):
        text = "".join(" ".join(words[(i + k) % 4] for k in range(2)) + f" {i}\n" for i in range(60))
        (folder / f"{side}.txt").write_text(text, encoding="utf-8")
    corpus = f"{folder / 'source.txt'}:{folder / 'target.txt'}"
    data = replace(base.data, corpus=corpus, context=48, buckets=1)
    begun = replace(base.train, start_from=str(folder / "base"), objective="completion", steps=4)
    experiment = replace(base, name="pairs", data=data, train=begun)
    train(experiment, folder / "pairs")
    result = evaluate(experiment, folder / "pairs", EvaluateOptions(split="test"))
    assert result["beam_size"] == 1
    assert 0 <= result["bleu"] <= 100
    run = zerotollm.load(folder / "pairs")
    assert run.translate(["god good 3"])[0][0].text == run.generate("god good 3")


def test_a_decoder_of_pairs_translates_and_one_of_jsonl_does_not(base):
    completion = replace(base.train, objective="completion")
    for corpus, expected in (
        ("a.txt:b.txt", True),
        ("tfds:wmt", True),
        ("a.tsv.gz", True),
        ("a.jsonl", False),
    ):
        experiment = replace(base, train=completion, data=replace(base.data, corpus=corpus))
        assert translates(experiment) == expected
    assert not translates(base)


def test_the_old_text_is_read_in_its_share_of_steps():
    mixed = replayed([f"new {i}" for i in range(100)], [f"old {i}" for i in range(100)], Fraction("0.25"))
    read = [mixed[step] for step in range(8)]
    assert read == ["new 0", "new 1", "new 2", "old 0", "new 3", "new 4", "new 5", "old 1"]
