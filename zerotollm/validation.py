"""Whether an experiment can run: bounds of its fields, and rules between fields. No heavy imports here."""

import re
from collections.abc import Iterator

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, task_of, translates
from zerotollm.fields import check_fields
from zerotollm.model.config import resolve
from zerotollm.sharding.config import parse_mesh

SPECIAL_AND_BYTE_PIECES = 4 + 256 + 2
NEEDS_ENCODER = "needs an encoder: set model.architecture to encoder-decoder"


def validate(experiment: Experiment) -> None:
    """Raise UsageError, one line that names the field, if the experiment cannot run. The corpus is not opened."""
    check_fields(experiment)
    parse_mesh(experiment.train.mesh)
    for violated, message in _rules(experiment):
        if violated:
            raise UsageError(message)
    # The tokenizer may not exist yet: its vocabulary is checked again when the model is built.
    model, vocab_size = experiment.model, experiment.model.vocab_size or experiment.tokenizer.vocab_size
    resolve(model, vocab_size=vocab_size, context=experiment.data.context)


def _rules(experiment: Experiment) -> Iterator[tuple[object, str]]:
    """Yield (whether a rule is violated, the message)."""
    name, data, tokenizer, sample = experiment.name, experiment.data, experiment.tokenizer, experiment.sample
    model, optimizer, train = experiment.model, experiment.optimizer, experiment.train
    corpus, objective, attention = data.corpus, train.objective, experiment.compute.attention
    task, has_encoder = task_of(experiment), model.architecture == "encoder-decoder"
    # the corpus and its tokenizer
    yield (
        not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name),
        f"name is {name!r}, and names a folder: use only letters, digits, '_', '-' and '.'",
    )
    needs, file, example = "a text", "FILE", "input.txt"
    if translates(experiment):
        needs, file, example = "pairs of texts", "SOURCE:TARGET", "source.txt:target.txt"
    yield (
        not data.corpus,
        f"the experiment {name} needs {needs}: add --data.corpus {file}, for example --data.corpus {example}",
    )
    yield (
        data.validation_fraction + data.test_fraction >= 1,
        "data.validation_fraction and data.test_fraction leave nothing to train on: lower them",
    )
    yield (
        tokenizer.byte_fallback and tokenizer.vocab_size < SPECIAL_AND_BYTE_PIECES,
        f"tokenizer.vocab_size is {tokenizer.vocab_size}, and must be at least {SPECIAL_AND_BYTE_PIECES} with "
        "tokenizer.byte_fallback: 4 special tokens, 256 bytes, space and line end come first",
    )
    yield (
        data.batch_size % train.micro_batches,
        f"train.micro_batches {train.micro_batches} does not divide data.batch_size {data.batch_size}",
    )
    yield (
        optimizer.kind == "adafactor" and optimizer.moments != "float32",
        f"optimizer.moments {optimizer.moments} is not for adafactor, whose state is small: set it to float32",
    )
    # fine-tuning
    yield (
        data.replay and not data.old,
        "data.replay is the fraction of steps that read data.old, which is empty: set data.old",
    )
    for name in ("trainable", "lora_rank"):
        yield (
            getattr(train, name) and not train.start_from,
            f"train.{name} needs a pretrained model: add --init-from RUN, for example --init-from runs/base",
        )
    yield (
        train.start_tokenizer == "new" and (train.lora_rank or train.trainable),
        "train.start_tokenizer new changes the embedding, which adapters and frozen parameters keep as it is in "
        "train.start_from: set it to same, or train all parameters",
    )
    for name in ("trainable", "lora_targets"):
        try:
            re.compile(getattr(train, name))
        except re.error as error:
            yield True, f"train.{name} is not a regular expression: {error}"
    # the objective
    yield (model.num_classes, "model.num_classes is the number of labels in the data: leave it out")
    yield (
        objective in ("span_corruption", "prefix_lm") and not has_encoder,
        f"train.objective {objective} {NEEDS_ENCODER}",
    )
    yield (
        objective == "completion" and has_encoder,
        "train.objective completion is for decoders only: set it to likelihood (of a target given its source)",
    )
    one_version = re.fullmatch(r"bible-\w+", corpus)
    yield (
        one_version and translates(experiment),
        f"{corpus} is not a pair to translate: set data.corpus to {corpus}:bible-bbe, for example, or "
        "train.objective to span_corruption or prefix_lm",
    )
    yield (
        re.match(r"bible-[\w+-]+:", corpus) and not has_encoder and objective not in ("completion", "label"),
        f"{corpus} is a pair to translate, which {NEEDS_ENCODER}, or train.objective to completion",
    )
    yield (
        one_version and objective == "completion",
        f"{corpus} has no completions: set data.corpus to a .jsonl file, or to pairs such as {corpus}:bible-bbe",
    )
    # fields of `data` that only some tasks read
    for name in ("validation", "test", "extra", "reverse"):
        allowed = task in ("translate", "complete") or (task == "label" and name in ("validation", "test"))
        yield (
            getattr(data, name) and not allowed,
            f"data.{name} is for pairs to translate, and this experiment reads none: leave it out",
        )
    yield (
        data.extra_steps and not (data.extra and task == "translate"),
        "data.extra_steps is the number of steps in which an encoder-decoder reads data.extra: set data.extra, or "
        "leave it out",
    )
    yield (
        data.old and task != "continue",
        "data.old is for a decoder that is trained further on plain text: leave it out",
    )
    # attention
    yield (
        data.document_mask and objective in ("completion", "label"),
        "data.document_mask is for plain text, and examples never share a window: set it to False",
    )
    yield (data.document_mask and has_encoder, "data.document_mask is for decoders only: set it to False")
    yield (
        has_encoder and attention not in ("auto", "plain"),
        f"compute.attention is {attention}, and an encoder-decoder has plain attention only: leave it out",
    )
    yield (
        sample.n_best > sample.beam_size,
        f"sample.n_best {sample.n_best} is above sample.beam_size {sample.beam_size}: "
        "lower n_best or raise beam_size",
    )
