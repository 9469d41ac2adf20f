"""The paper's recipe: sizes, schedule, smoothing, and Table 3 with the paper's column of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import vaswani_base, vaswani_big, vaswani_table3
from zerotollm.experiment import differences
from zerotollm.model.config import resolve
from zerotollm.planning.flops import num_parameters
from zerotollm.studies.published import published_markdown
from zerotollm.studies.results import page_markdown
from zerotollm.studies.suite import BASE
from zerotollm.studies.table import make_rows
from zerotollm.training.cross_entropy import Penalty, token_losses
from zerotollm.training.optimizers import learning_rate_schedule
from zerotollm.validation import validate


def millions(experiment) -> float:
    shape = experiment.data
    return (
        num_parameters(
            resolve(experiment.model, vocab_size=experiment.tokenizer.vocab_size, context=shape.context)
        )
        / 1e6
    )


def test_base_and_big_have_the_papers_numbers():
    base, big = vaswani_base.experiment(), vaswani_big.experiment()
    assert millions(base) == pytest.approx(65, rel=0.04)
    assert millions(big) == pytest.approx(213, rel=0.04)
    # What it is made of: a shared table, six blocks of the encoder, six of the decoder, and nothing else.
    D, F, V = 512, 2048, 37056
    attention, feed_forward, norm = 4 * D * D, 2 * D * F + F + D, 2 * D
    parts = V * D, 6 * (attention + feed_forward + 2 * norm), 6 * (2 * attention + feed_forward + 3 * norm)
    assert millions(base) * 1e6 == sum(parts)
    assert [round(part / 1e6, 1) for part in parts] == [19.0, 18.9, 25.2]
    assert base.data.batch_size * base.data.context == pytest.approx(25_000, rel=0.01)


@pytest.mark.parametrize(("step", "width"), [(1, 512), (4_000, 512), (100_000, 512), (100_000, 1024)])
def test_equation_3_the_learning_rate(step, width):
    experiment = (vaswani_base if width == 512 else vaswani_big).experiment()
    optimizer = experiment.optimizer
    schedule = learning_rate_schedule(optimizer, optimizer.learning_rate, experiment.train.steps)
    expected = width**-0.5 * min(step**-0.5, step * 4000**-1.5)
    assert float(schedule(step - 1)) == pytest.approx(expected, rel=1e-5)  # ours counts from 0


def test_section_5_4_label_smoothing():
    """Cross-entropy against 1 - e for the target plus e / V for every row."""
    logits_BTV = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 7)), jnp.float32)
    targets_BT = jnp.array([[3, 0]])
    for smoothing in (0.0, 0.1):
        ours, _, _ = token_losses(logits_BTV, targets_BT, Penalty(smoothing))
        q = (1 - smoothing) * np.eye(7)[np.asarray(targets_BT)] + smoothing / 7
        expected = -(q * np.asarray(jax.nn.log_softmax(logits_BTV))).sum(-1)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def suite(size):
    return vaswani_table3.variants(vaswani_table3.budget(vaswani_table3.experiment(), size))


def test_parameters_at_full_are_the_papers():
    for variant in suite("full"):
        if "parameters" in variant.published:
            assert millions(variant.experiment) == pytest.approx(variant.published["parameters"], rel=0.04)


@pytest.mark.parametrize("size", ["tiny", "small", "full"])
def test_every_row_of_table_3_can_run_and_is_one_change(size):
    variants = suite(size)
    assert len(variants) == 20
    base = variants[0].experiment
    seen = set()
    for variant in variants:
        validate(variant.experiment)
        changed = {name for name, _, _ in differences(base, variant.experiment)}
        seen.add(variant.experiment)
        moved_along = {"optimizer.learning_rate", "model.head_width"}
        assert len(changed - moved_along) == {BASE: 0, "big": 5}.get(variant.name, 1), variant.name
    assert len(seen) == 20


def test_at_full_the_papers_rows_are_met():
    rows = {variant.name: variant.experiment for variant in suite("full")}
    assert [rows[f"A-heads-{n}"].model.num_heads for n in ("eighth", "half", "2", "4")] == [1, 4, 16, 32]
    assert [rows[f"B-keys-{n}"].model.key_width for n in ("quarter", "half")] == [16, 32]
    layers = [rows[f"C-layers-{n}"].model.num_layers for n in ("third", "two-thirds", "four-thirds")]
    assert layers == [2, 4, 8]
    big = vaswani_big.experiment()
    assert rows["big"].optimizer.learning_rate == pytest.approx(big.optimizer.learning_rate)
    assert {name for name, _, _ in differences(rows["big"], big)} - {"optimizer.learning_rate"} == {
        "name", "tokenizer.vocab_size", "train.keep", "train.average",
    }  # fmt: skip


def record(variant, seed, loss, bleu):
    return {
        "variant": variant.name, "group": variant.group, "paper": variant.paper, "sentence": variant.sentence,
        "published": variant.published, "change": [], "seed": seed, "rate": 1.0, "outcome": "trained",
        "parameters": 1_650_000, "flops_per_token": 1.0, "tokens_per_second": 1.0,
        "validation_loss": loss, "validation_bpb": loss / 2, "validation_bleu": bleu,
    }  # fmt: skip


def test_the_table_stands_beside_the_papers_and_says_what_holds():
    rows = {variant.name: variant for variant in suite("small")}
    losses = {
        BASE: (2.0, 2.1),
        "A-heads-eighth": (2.2, 2.3),
        "B-keys-half": (2.03,),  # worse than the base's first seed, though not than its mean
        "C-layers-third": (1.9, 2.0),
        "C-layers-two-thirds": (1.9,),
        "E-learned": (2.0, 2.2),
    }
    records = [
        record(rows[name], seed, loss, 20.0 + seed)
        for name, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    text = published_markdown(make_rows(records))
    assert "| base | - | 7.78 (2) | 4.92 | 20.5 | 25.8 | 1.6 | 65 |" in text
    assert "the perplexity of 4 variants differs" in text
    assert "Here 1 of them are shown to differ in the same direction (A-heads-eighth)." in text
    assert "1 differ in this direction without being shown to (B-keys-half)." in text
    assert (
        "2 do not (C-layers-third, C-layers-two-thirds). 1 of these are shown to differ in the other one "
        "(C-layers-third). A 95 % interval" in text
    )
    assert page_markdown(make_rows(records)) + "\n" == text
    own = make_rows([record(rows[BASE], 0, 2.0, 1.0) | {"published": None}])
    assert published_markdown(own) == ""
    assert page_markdown(own).startswith("| group | variant |")
