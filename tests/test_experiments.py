"""Every experiment describes itself, and differs from its parent in recorded fields only.

That each builds is shown with its plan, in tests/actions/test_plan.py.
"""

import re
from importlib import import_module
from pathlib import Path

import pytest

from experiments import finetune_translate
from tests.recorded import assert_recorded
from zerotollm import catalog
from zerotollm.experiment import Experiment, differences
from zerotollm.validation import validate

FOLDER = Path(__file__).parent.parent / "experiments"
NAMES = catalog.names(FOLDER)


def load(name: str | None) -> Experiment:
    return catalog.load(FOLDER, name) if name else Experiment()


def test_changed_fields_are_recorded():
    """An experiment differs from its parent, the nearest experiment that its file imports, in recorded fields only."""
    derived = {}
    for name in NAMES:
        source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        parents = re.findall(r"^from experiments\.(\w+) import", source, re.MULTILINE) or [None]
        changed = {parent: changed_fields(load(parent), load(name)) for parent in parents}
        parent = min(changed, key=lambda parent: len(changed[parent]))
        derived[name] = {"parent": parent, "changed": changed[parent]}
    assert_recorded("experiments", derived)


def changed_fields(parent: Experiment, child: Experiment) -> list[str]:
    return [
        field
        for field, _, _ in differences(parent, child)
        if field != "name" and not field.startswith("code.")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_is_named_after_its_file_and_valid_with_a_corpus(name):
    experiment = load(name)
    assert experiment.name == name
    if experiment.data.corpus:
        validate(experiment)


@pytest.mark.parametrize("name", NAMES)
def test_describes_itself(name):
    description = catalog.describe(FOLDER, name)
    assert description.question.endswith("?")
    assert description.command.startswith(f"python launch.py --experiment {name}")
    assert description.time
    assert description.expected


@pytest.mark.parametrize("name", NAMES)
def test_is_a_pure_function(name):
    experiment = import_module(f"experiments.{name}").experiment
    assert experiment() == experiment()


def test_decoder_and_encoder_decoder_are_compared_at_equal_compute():
    base = finetune_translate.experiment()
    *_, other = (variant.experiment for variant in finetune_translate.variants(base))
    assert other.model.architecture == "encoder-decoder"
    assert other.data.corpus == base.data.corpus
    costs = [finetune_translate.flops_per_step(one) * one.train.steps for one in (base, other)]
    assert costs[1] == pytest.approx(costs[0], rel=1e-3)
    # 8 rows of 192 tokens: 6 FLOPs for each parameter of a matrix but the embedding, and attention.
    counted = 6 * (3_345_152 - 4096 * 192) * 8 * 192
    assert counted < finetune_translate.flops_per_step(base) < 1.3 * counted
