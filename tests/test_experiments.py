"""Every experiment builds, says what it is for, and differs from its parent only where it should."""

from importlib import import_module
from pathlib import Path

import jax
import pytest

from tests.functions import init_state
from zerotollm import catalog
from zerotollm.experiment import Experiment, differences
from zerotollm.model.config import resolve
from zerotollm.validation import validate

FOLDER = Path(__file__).parent.parent / "experiments"
NAMES = catalog.names(FOLDER)

# Experiment: its parent, and all that it changes there. `None` is the experiment of all defaults.
PARENTS = {
    "base": (None, {"model.token_shift"}),
    "base_qwen3": (
        "base",
        {"model.token_shift", "model.dropout", "optimizer.embedding_learning_rate", "train.steps"},
    ),
    "scaling": (
        "base",
        {
            "data.context",
            "data.batch_size",
            "tokenizer.vocab_size",
            "optimizer.block",
        },
    ),
    "ablations": ("base", set()),
    "gpt2_124m": (
        "base",
        {
            "data.corpus",
            "data.context",
            "data.batch_size",
            "tokenizer.vocab_size",
            "model.num_layers",
            "model.width",
            "model.num_heads",
            "model.tie_embeddings",
            "model.token_shift",
            "optimizer.warmup_steps",
            "train.steps",
            "train.micro_batches",
            "train.eval_every",
            "train.sample_every",
            "train.checkpoint_every",
        },
    ),
    "gpt2_medium": (
        "gpt2_124m",
        {
            "model.num_layers",
            "model.width",
            "model.num_heads",
            "optimizer.moments",
            "train.steps",
            "train.micro_batches",
            "compute.remat",
            "compute.scan_layers",
        },
    ),
    "rtx2080": (
        "gpt2_124m",
        {"tokenizer.vocab_size", "model.width", "model.num_heads", "train.steps"},
    ),
    "vaswani_base": (
        None,
        {
            "data.corpus",
            "data.reverse",
            "data.batch_size",
            "tokenizer.vocab_size",
            "model.architecture",
            "model.num_layers",
            "model.width",
            "model.num_heads",
            "model.ff_width",
            "model.feed_forward",
            "model.biases",
            "model.norm",
            "model.norm_position",
            "model.position",
            "model.qk_norm",
            "model.tie_embeddings",
            "model.embedding_scale",
            "model.initialization",
            "model.dropout",
            "optimizer.kind",
            "optimizer.learning_rate",
            "optimizer.schedule",
            "optimizer.warmup_steps",
            "optimizer.weight_decay",
            "optimizer.beta2",
            "optimizer.epsilon",
            "train.steps",
            "train.label_smoothing",
            "train.eval_every",
            "train.sample_every",
            "train.checkpoint_every",
            "train.keep",
            "train.average",
            "train.log_every",
            "sample.prompt",
            "sample.max_tokens",
        },
    ),
    "vaswani_big": (
        "vaswani_base",
        {
            "model.width",
            "model.num_heads",
            "model.ff_width",
            "model.dropout",
            "optimizer.learning_rate",
            "train.steps",
            "train.keep",
            "train.average",
        },
    ),
    "vaswani_table3": ("vaswani_base", {"tokenizer.vocab_size"}),
    "translate_fr": ("translate", {"data.corpus", "sample.prompt"}),
    "translate_es": ("translate_fr", {"data.corpus"}),
    "translate_de": ("translate_fr", {"data.corpus"}),
    "bible_style": ("translate", {"data.corpus", "sample.prompt"}),
    "bible_style_extra": (
        "bible_style",
        {
            "data.extra",
            "data.extra_steps",
            "model.width",
            "model.num_heads",
            "model.dropout",
            "train.steps",
            "train.eval_every",
            "train.sample_every",
            "train.checkpoint_every",
            "sample.patience",
        },
    ),
    "translate": (
        "base",
        {
            "data.corpus",
            "data.context",
            "data.batch_size",
            "tokenizer.vocab_size",
            "model.architecture",
            "model.num_layers",
            "model.encoder_layers",
            "model.width",
            "model.num_heads",
            "model.cross_rope",
            "model.dropout",
            "optimizer.block",
            "train.steps",
            "train.label_smoothing",
            "train.eval_every",
            "train.sample_every",
            "train.checkpoint_every",
            "sample.beam_size",
            "sample.length_penalty",
            "sample.prompt",
            "sample.max_tokens",
        },
    ),
    "finetune_subject": (
        "base",
        {
            "data.corpus",
            "data.old",
            "optimizer.learning_rate",
            "optimizer.adam_learning_rate",
            "optimizer.embedding_learning_rate",
            "train.steps",
            "train.eval_every",
            "train.sample_every",
            "train.checkpoint_every",
            "sample.prompt",
        },
    ),
    "finetune_lora": ("finetune_subject", {"data.old"}),
    "finetune_classify": (
        "base",
        {
            "data.corpus",
            "data.context",
            "data.batch_size",
            "model.dropout",
            "optimizer.learning_rate",
            "optimizer.adam_learning_rate",
            "optimizer.embedding_learning_rate",
            "train.objective",
            "train.steps",
            "train.eval_every",
            "train.sample_every",
            "train.checkpoint_every",
        },
    ),
    "finetune_chat": (
        "base",
        {
            "data.corpus",
            "data.batch_size",
            "model.dropout",
            "train.objective",
            "train.steps",
            "train.eval_every",
            "train.sample_every",
            "train.checkpoint_every",
            "sample.max_tokens",
        },
    ),
    "finetune_translate": (
        "base",
        {
            "data.corpus",
            "data.context",
            "data.batch_size",
            "train.objective",
            "train.steps",
            "train.eval_every",
            "train.sample_every",
            "train.checkpoint_every",
            "sample.prompt",
            "sample.max_tokens",
        },
    ),
    "shakespeare_char": (
        "base",
        {
            "data.corpus",
            "data.documents",
            "data.validation_fraction",
            "data.test_fraction",
            "data.context",
            "data.batch_size",
            "tokenizer.kind",
            "tokenizer.byte_fallback",
            "model.num_layers",
            "model.width",
            "optimizer.learning_rate",
            "optimizer.adam_learning_rate",
            "optimizer.embedding_learning_rate",
            "optimizer.warmup_steps",
            "optimizer.decay_fraction",
            "optimizer.momentum",
            "train.steps",
            "sample.prompt",
            "sample.max_tokens",
        },
    ),
    "shakespeare_char_best": (
        "shakespeare_char",
        {
            "data.context",
            "data.batch_size",
            "model.num_layers",
            "model.width",
            "model.dropout",
            "optimizer.learning_rate",
            "optimizer.adam_learning_rate",
            "optimizer.embedding_learning_rate",
            "optimizer.warmup_steps",
            "optimizer.decay_fraction",
            "optimizer.momentum",
            "train.steps",
            "train.eval_every",
            "train.sample_every",
            "train.checkpoint_every",
        },
    ),
}


def load(name: str | None) -> Experiment:
    return catalog.load(FOLDER, name) if name else Experiment()


@pytest.mark.parametrize("name", NAMES)
def test_builds(name):
    experiment = load(name)
    model = resolve(
        experiment.model, vocab_size=experiment.tokenizer.vocab_size, context=experiment.data.context
    )
    state = jax.eval_shape(lambda: init_state(model, experiment.optimizer, experiment.train))
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    assert (model.vocab_size, model.width) in shapes
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("name", NAMES)
def test_changes_only_these_fields_of_its_parent(name):
    assert name in PARENTS, f"say in PARENTS what {name} changes, and from which experiment"
    parent, expected = PARENTS[name]
    changed = {field for field, _, _ in differences(load(parent), load(name))}
    assert changed - {"name"} == expected


@pytest.mark.parametrize("name", NAMES)
def test_is_named_after_its_file_and_can_run_once_it_has_a_text(name):
    experiment = load(name)
    assert experiment.name == name
    if experiment.data.corpus:
        validate(experiment)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is_for(name):
    about = catalog.describe(FOLDER, name)
    assert about.question.endswith("?")
    assert about.command.startswith(f"python launch.py --experiment {name}")
    assert about.time
    assert about.expected


@pytest.mark.parametrize("name", NAMES)
def test_is_a_pure_function(name):
    experiment = import_module(f"experiments.{name}").experiment
    assert experiment() == experiment()


def test_decoder_and_encoder_decoder_are_compared_at_equal_compute():
    from experiments.finetune_translate import experiment, flops_per_step, variants

    base = experiment()
    *_, other = (variant.experiment for variant in variants(base))
    assert other.model.architecture == "encoder-decoder"
    assert other.data.corpus == base.data.corpus
    costs = [flops_per_step(one) * one.train.steps for one in (base, other)]
    assert costs[1] == pytest.approx(costs[0], rel=1e-3)
    # Of 8 rows of 192 tokens: 6 FLOPs for every number in a matrix but the embedding's, and attention.
    counted = 6 * (3_345_152 - 4096 * 192) * 8 * 192
    assert counted < flops_per_step(base) < 1.3 * counted
