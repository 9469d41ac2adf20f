"""The recipe of `translate` for one's own pairs: a function of their size, from ten sentences to WMT."""

from pathlib import Path

import pytest

from experiments.translate import experiment, recipe_for_pairs
from zerotollm.cli import main
from zerotollm.data.config import DataConfig
from zerotollm.data.sources import parallel
from zerotollm.experiment import to_json
from zerotollm.studies.suite import changed
from zerotollm.validation import validate

ROOT = Path(__file__).parent.parent
SIZES = [0, 400, 50_000, 1_000_000, 2_070_000, 3_600_000, 20_000_000, 600_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_it_gives_a_valid_experiment_for_any_size(size):
    validate(changed(experiment(), recipe_for_pairs(size)))


def test_it_is_that_of_the_measured_corpora():
    captions, verses = recipe_for_pairs(2_070_000), recipe_for_pairs(3_600_000)
    assert (captions["train.steps"], captions["model.dropout"]) == (8000, 0.2)
    assert (verses["train.steps"], verses["model.dropout"]) == (8000, 0.1)
    assert captions["tokenizer.vocab_size"] == verses["tokenizer.vocab_size"] == 4096


def test_the_table_of_the_documentation_is_the_recipe():
    page = (ROOT / "docs/how-to/translate.md").read_text("utf-8")
    table = page.split("| MB of targets to train on |")[1].split("\n\n")[0]
    rows = [
        [float(cell.replace(",", "")) for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]
    ]
    assert len(rows) == 7
    for megabytes, *values in rows:
        fields = recipe_for_pairs(int(megabytes * 1e6))
        names = ("train.steps", "model.dropout", "model.width", "tokenizer.vocab_size")
        assert [fields[name] for name in names] == values


def test_larger_steps_are_fewer():
    usual, larger = recipe_for_pairs(2_070_000), recipe_for_pairs(2_070_000, 64 * 96)
    assert larger == usual | {"train.steps": 2000}


def test_more_pairs_never_make_a_smaller_model_fewer_steps_or_more_dropout():
    recipes = [recipe_for_pairs(size) for size in SIZES]
    for name in ("train.steps", "model.width", "tokenizer.vocab_size"):
        values = [fields[name] for fields in recipes]
        assert values == sorted(values), name
    dropouts = [fields["model.dropout"] for fields in recipes]
    assert dropouts == sorted(dropouts, reverse=True)


def test_the_size_of_many_pairs_is_estimated_from_some(tmp_path, monkeypatch):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"quelle {i}\t{'ziel ' * (i % 7 + 1)}{i:05}\n" for i in range(5000)), "utf-8")
    data = DataConfig(corpus=str(path))
    exact = parallel.target_bytes(data)
    pairs = parallel.open_parallel(data).splits["train"]
    assert exact == sum(len(pair.target.encode()) for pair in pairs)
    monkeypatch.setattr(parallel, "SAMPLED", 500)
    assert parallel.target_bytes(data) == pytest.approx(exact, rel=0.05)
    assert parallel.target_bytes(data) != exact


def plan(*options):
    return main(["translate", "plan", "--device", "rtx2080", *options], ROOT / "experiments")


def test_a_plan_of_own_pairs_is_by_the_recipe_and_says_so(tmp_path, caplog, capsys):
    rows = [f"ein Hund {i}\ta dog {i}\n" for i in range(100)]
    (tmp_path / "pairs.tsv").write_text("".join(rows), "utf-8")
    options = ("--data.corpus", str(tmp_path / "pairs.tsv"))
    assert plan(*options, "--model.dropout", "0.4") == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"chosen by the size of {tmp_path / 'pairs.tsv'}: --train.steps 1000, --model.width 128, --model.num-heads 4, "
        "--tokenizer.vocab-size 512, --sample.length-penalty 1.4"
    )
    assert plan(*options, "--data.batch-size", "0") == 2
    assert "batch-size" in capsys.readouterr().err.replace("_", "-"), (
        "a wrong value is found before the pairs are read"
    )


def test_a_set_of_tfds_is_not_downloaded_to_be_planned(monkeypatch, caplog):
    monkeypatch.setattr(parallel, "target_bytes", lambda data: pytest.fail("read"))
    assert plan("--data.corpus", "tfds:wmt14_translate/de-en") == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "chosen for bible-wyc:bible-web and kept for tfds:wmt14_translate/de-en: train.steps 4000"
    )


def test_the_recipe_knows_the_tokens_of_a_step_and_needs_an_experiment(tmp_path, caplog, capsys):
    rows = [f"ein Hund {i}\ta dog {i}\n" for i in range(20_000)]
    (tmp_path / "pairs.tsv").write_text("".join(rows), "utf-8")
    options = ("--data.corpus", str(tmp_path / "pairs.tsv"), "--device", "rtx2080")
    for batch, steps in (("4", 3000), ("8", 2000)):
        assert plan(*options, "--data.batch-size", batch) == 0
        assert f"--train.steps {steps}," in caplog.records[-1].getMessage()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(to_json(experiment()), "utf-8")
    main(["plan", "--run-dir", str(tmp_path / "run"), *options], ROOT / "experiments")
    assert "No module" not in capsys.readouterr().err


def test_a_run_that_failed_early_chooses_nothing_for_the_next(tmp_path, caplog, capsys):
    rows = [f"ein Hund {i}\ta dog {i}\n" for i in range(100)]
    (tmp_path / "pairs.tsv").write_text("".join(rows), "utf-8")
    failed = changed(experiment(), {"train.steps": 7, "data.corpus": str(tmp_path / "pairs.tsv")})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(to_json(failed), "utf-8")
    assert plan("--data.corpus", failed.data.corpus, "--run-dir", str(tmp_path / "run")) == 0
    assert "--train.steps 1000," in caplog.records[0].getMessage()
