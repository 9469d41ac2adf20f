"""What `validate` and `resolve` refuse, and how the model's derived numbers are filled in."""

from dataclasses import replace

import pytest

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.fields import field_types
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.studies.suite import changed
from zerotollm.validation import validate

FIELDS = field_types(Experiment)


def test_the_default_experiment_is_valid():
    validate(Experiment())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("data.context", 0, "at least 1"),
        ("data.batch_size", 0, "at least 1"),
        ("data.validation_fraction", 1.0, "below 1"),
        ("data.test_fraction", -0.1, "at least 0"),
        ("data.corpus", "", "--data.corpus"),
        ("data.corpus", 3, "must be text"),
        ("data.documents", "line", "one of auto, file, paragraph"),
        ("tokenizer.vocab_size", 261, "at least 262"),
        ("model.num_layers", 0, "at least 1"),
        ("model.width", 250, "is not divisible by"),
        ("model.num_heads", 5, "take 4 heads"),
        ("model.width", 191, "take 1 head, or set"),
        ("model.num_kv_heads", 2, "does not divide"),
        ("model.head_width", 7, "even"),
        ("model.max_length", 64, "data.context 256 is longer than model.max_length 64"),
        ("model.vocab_size", -64, "at least 0"),
        ("model.dropout", 1.0, "below 1"),
        ("model.dropout", float("nan"), "must be a number"),
        ("optimizer.learning_rate", 0.0, "above 0"),
        ("optimizer.warmup_steps", -1, "at least 0"),
        ("optimizer.decay_fraction", 1.5, "at most 1"),
        ("optimizer.beta2", 1.0, "below 1"),
        ("optimizer.weight_decay", -0.1, "at least 0"),
        ("optimizer.iterations", 6, "at most 5"),
        ("train.steps", 0, "at least 1"),
        ("train.steps", True, "whole number"),
        ("train.steps", 10**20, "at most 2147483647"),
        ("model.width", 2**31, "at most 2147483647"),
        ("sample.top_k", 10**20, "at most 2147483647"),
        ("optimizer.learning_rate", 10**400, "must be a number"),
        ("train.micro_batches", 3, "does not divide data.batch_size 4"),
        ("train.seed", 2**32, "at most 4294967295"),
        ("train.keep", 0, "at least 1"),
        ("train.label_smoothing", 1.0, "below 1"),
        ("train.z_loss", -1e-4, "at least 0"),
        ("model.initialization", "small", "one of scaled, plain, zero"),
        ("optimizer.schedule", "constant", "one of wsd, cosine, linear, inverse_sqrt"),
        ("sample.temperature", -1.0, "at least 0"),
        ("sample.top_p", 0.0, "above 0"),
        ("sample.min_p", 1.1, "at most 1"),
        ("name", "../elsewhere", "names a folder"),
    ],
)
def test_an_invalid_value_is_refused_in_one_line_that_names_the_field(name, value, says):
    with pytest.raises(UsageError) as error:
        validate(changed(Experiment(), {name: value}))
    message = str(error.value)
    assert says in message
    assert name.rpartition(".")[2] in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [name for name, kind in FIELDS.items() if kind in (int, float)])
def test_no_number_may_be_negative(name):
    with pytest.raises(UsageError, match=name):
        validate(changed(Experiment(), {name: FIELDS[name](-1)}))


def test_held_out_fractions_leave_something_to_train_on():
    data = replace(Experiment().data, validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(UsageError, match="nothing to train on"):
        validate(replace(Experiment(), data=data))


@pytest.mark.parametrize("feed_forward", ["swiglu", "gelu", "relu", "relu2"])
@pytest.mark.parametrize("width", [32, 64, 128, 256, 768])
def test_resolve_replaces_zeros_and_keeps_the_cost_of_the_feed_forward(feed_forward, width):
    config = TransformerConfig(width=width, num_heads=4, feed_forward=feed_forward)
    resolved = resolve(config, vocab_size=2001, context=96)
    assert resolve(resolved, vocab_size=2001, context=96) == resolved
    assert 0 not in (resolved.num_kv_heads, resolved.head_width, resolved.ff_width)
    assert resolved.vocab_size == 2048
    assert resolved.max_length == 96
    assert resolved.head_width * resolved.num_heads == width
    matrices = 3 if feed_forward == "swiglu" else 2
    assert 1 <= matrices * resolved.ff_width / (2 * 4 * width) < 1.2
    assert resolved.ff_width % 8 == 0


def test_resolve_keeps_explicit_numbers():
    config = TransformerConfig(
        vocab_size=4096,
        max_length=512,
        num_heads=4,
        num_kv_heads=2,
        head_width=32,
        key_width=16,
        ff_width=100,
    )
    assert resolve(config, vocab_size=2048, context=128) == config


def test_a_vocabulary_below_the_tokenizers_is_refused():
    with pytest.raises(UsageError, match="2000"):
        resolve(TransformerConfig(vocab_size=1024), vocab_size=2000, context=128)
