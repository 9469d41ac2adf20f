"""The recipe of `translate` for one's own pairs: a function of their size, from ten sentences to WMT."""

from pathlib import Path

import pytest

from experiments.translate import experiment, recipe_for_pairs
from zerotollm.data.config import DataConfig
from zerotollm.data.sources import parallel
from zerotollm.studies.suite import changed
from zerotollm.validation import validate

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
    page = (Path(__file__).parent.parent / "docs/how-to/translate.md").read_text("utf-8")
    table = page.split("| MB of targets to train on |")[1].split("\n\n")[0]
    rows = [
        [float(cell.replace(",", "")) for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]
    ]
    assert len(rows) == 6
    for megabytes, *values in rows:
        fields = recipe_for_pairs(int(megabytes * 1e6))
        names = ("train.steps", "model.dropout", "model.width", "tokenizer.vocab_size")
        assert [fields[name] for name in names] == values


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
