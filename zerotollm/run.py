"""A finished or running directory, opened from Python."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from zerotollm import run_directory
from zerotollm.components import label_step_of, model_of
from zerotollm.data.feed import sentinels
from zerotollm.data.tokens.conversations import EncodeConversation, conversation_encoder
from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, load_tokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import stream_text
from zerotollm.decoding.translate import Translation, translate_texts
from zerotollm.errors import RunError, UsageError
from zerotollm.evaluation.classification import label_probabilities
from zerotollm.experiment import Experiment, translates
from zerotollm.model.build import Net, Params, init_params
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.sharding.rules import place_tree, shardings
from zerotollm.training import checkpoints
from zerotollm.training.checkpoints import Checkpoint
from zerotollm.training.config import default_checkpoint
from zerotollm.training.lora import LORA, merge_params, partition, trains_subset
from zerotollm.training.metrics import read_metrics
from zerotollm.training.parameter_transfer import fingerprint, transfer_params
from zerotollm.types import Json


@dataclass(frozen=True, repr=False)
class Run:
    """A trained model with all that belongs to it. See `load`."""

    path: Path
    experiment: Experiment
    model_config: TransformerConfig
    """the experiment's, with every size filled in"""
    step: int
    """optimizer steps that `params` have seen; the last of them where `params` are a mean"""
    params: Params
    tokenizer: AnyTokenizer
    """a `PretrainedTokenizer` where the model was imported"""
    validation_bpb: float | None = None
    """bits per byte of the validation split at that step, if it was measured"""
    labels: tuple[str, ...] = ()
    """names of the labels, for a model that labels texts"""
    adapters: Params | None = None
    """the low-rank matrices, if the run trained any; `params` contain their products already"""

    @property
    def trained(self) -> Experiment:
        """The experiment with its model resolved."""
        return replace(self.experiment, model=self.model_config)

    @property
    def net(self) -> Net:
        """The model as a function: `run.net.apply({"params": run.params}, {"inputs": ids_BT}).logits()`."""
        return model_of(self.trained)

    @property
    def num_parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(self.params))

    @property
    def trained_on_conversations(self) -> bool:
        """Whether this package trained it on conversations. An imported model that was not trained on has step 0."""
        return self.step > 0 and self.experiment.train.objective == "completion"

    @property
    def chats(self) -> bool:
        """Whether it was trained on conversations, here or by the author of its chat template."""
        template = isinstance(self.tokenizer, PretrainedTokenizer) and self.tokenizer.chat_template
        return self.trained_on_conversations or bool(template)

    @property
    def encode_conversation(self) -> EncodeConversation:
        """The function from messages to the ids of the prompt that the model answers."""
        return conversation_encoder(self.tokenizer, trained_here=self.trained_on_conversations)

    def generate(self, prompt: str = "", **sampling: Any) -> str:
        """Return the prompt and its continuation, or its translation. `sampling` replaces fields of its `sample`.

        >>> run.generate("In the beginning", max_tokens=40, temperature=0.7)

        Raises UsageError for an unknown field, or a prompt longer than the context.
        """
        return "".join(self.stream(prompt, **sampling))

    def stream(self, prompt: str = "", **sampling: Any) -> Iterator[str]:
        """Yield the same text piece by piece, as it is written; the first piece is the prompt."""
        if self.labels:
            raise UsageError(f"{self.path} holds a model that labels texts and writes none: see classify")
        if not self.model_config.encoder_layers and translates(self.experiment):
            return (found[0].text for found in self.translate([prompt], **sampling))
        return stream_text(self.params, self.net, self.tokenizer, self._sampling(prompt=prompt, **sampling))

    def translate(self, texts: Sequence[str], **sampling: Any) -> list[list[Translation]]:
        """Return the best translations of each text, as pairs of text and score. `sampling` as in `generate`.

        >>> run.translate(["In the bigynnyng God made of nouyt heuene and erthe."], beam_size=8, n_best=3)

        Raises UsageError for a model that was not trained to translate, and for an unknown field.
        """
        if not translates(self.experiment):
            raise UsageError(
                f"{self.path} holds a model that has not learned to translate: it continues texts, see generate"
            )
        return translate_texts(self.params, self.net, self.tokenizer, texts, self._sampling(**sampling))

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return the probability of every label of each text, the likeliest first.

        >>> run.classify(["In the beginning God created the heavens and the earth."])

        Raises UsageError for a model that does not label texts.
        """
        if not self.labels:
            raise UsageError(f"{self.path} holds a model that writes text and tells no labels: see generate")
        step = label_step_of(self.trained, self.tokenizer.pad_id)
        probabilities_NK = label_probabilities(
            step, self.params, self.tokenizer, texts, max_length=self.model_config.max_length
        )
        rows = [zip(self.labels, map(float, row), strict=True) for row in probabilities_NK]
        return [dict(sorted(row, key=lambda pair: -pair[1])) for row in rows]

    def checkpoints(self) -> Iterator[tuple[int, Params]]:
        """Yield (step, params) of what is left of the run's history, the oldest first, ending with this run's own."""
        if self.step and not self.experiment.train.start_from:  # an imported model has no history
            yield 0, init_params(self.net, self.experiment.train.seed)
        for checkpoint in checkpoints.finished(self.path / run_directory.CHECKPOINTS):
            if checkpoint.step < self.step:
                yield checkpoint.step, checkpoints.restore_params(checkpoint)
        yield self.step, self.params

    def metrics(self) -> list[Json]:
        """Return the lines of metrics.jsonl so far: `[{"step": 10, "loss": 6.1, ...}, ...]`."""
        return read_metrics(self.path / run_directory.METRICS)

    def require_built_in_model(self, action: str) -> None:
        """Raise UsageError if the run's model is that of an experiment's file, which `action` cannot read."""
        if "model" in self.experiment.code.functions:
            raise UsageError(
                f"{self.path} holds a model of {self.experiment.code.module}, and {action} reads built-in models only"
            )

    def _sampling(self, **changes: Any) -> SamplingConfig:
        known = SamplingConfig.__dataclass_fields__
        for name in changes:
            if name not in known:
                raise UsageError(f"unknown option {name}: one of {', '.join(known)}")
        return replace(self.experiment.sample, **changes)

    def __repr__(self) -> str:
        model = self.model_config
        bpb = f", {self.validation_bpb:.4f} bits per byte" if self.validation_bpb is not None else ""
        return (
            f"Run({str(self.path)!r}: {self.num_parameters:,} parameters, {model.num_layers} layers, "
            f"width {model.width}, vocabulary {model.vocab_size}; step {self.step}{bpb})"
        )


def load(path: str | Path, step: int | str = "", mesh: Mesh | None = None) -> Run:
    """Open a run directory to use its model; arguments and errors as of `zerotollm.load`, which can explain it too."""
    path = Path(path).expanduser()
    written = run_directory.read_experiment(path)
    experiment = run_directory.located(path, written)
    folder = path / run_directory.CHECKPOINTS
    averaged = checkpoints.choose(folder, experiment.train, step or default_checkpoint(experiment.train))
    tokenizer = load_tokenizer(path / run_directory.TOKENIZER)
    params = checkpoints.average_params(averaged, mesh and partial(shardings, mesh=mesh))
    config, labels = experiment.model, run_directory.read_labels(path)
    adapters = params[LORA] if experiment.train.lora_rank else None
    if trains_subset(experiment.train):
        config, params, experiment = _with_frozen(path, written, params, averaged[-1], labels, mesh)
    return Run(
        path=path,
        experiment=experiment,
        # A run that was initialized from another one has as many rows as that.
        model_config=resolve(
            replace(config, vocab_size=params["embedding"].shape[0], num_classes=len(labels)),
            vocab_size=tokenizer.vocab_size + sentinels(experiment.train.objective),
            context=experiment.data.context,
        ),
        step=averaged[-1].step,
        params=params,
        tokenizer=tokenizer,
        validation_bpb=None if len(averaged) > 1 or labels else averaged[-1].bpb(),
        labels=labels,
        adapters=adapters,
    )


def _with_frozen(
    path: Path,
    experiment: Experiment,
    trainable: Params,
    checkpoint: Checkpoint,
    labels: tuple[str, ...],
    mesh: Mesh | None,
) -> tuple[TransformerConfig, Params, Experiment]:
    """Return (model, all parameters, experiment) of a run that trained some of another run's parameters, or adapters.

    Where several paths may be meant by `train.start_from`, it is the one with the same parameters.
    """
    train = experiment.train
    failed: UsageError | RunError | None = None
    for place in run_directory.starts(path, train.start_from) or [train.start_from]:
        try:
            start = load(place)
            model = replace(start.model_config, dropout=experiment.model.dropout, num_classes=len(labels))
            net = model_of(replace(experiment, model=model))
            inherited = transfer_params(start.params, net, place, same_labels=start.labels == labels)
        except UsageError as error:
            failed = failed or UsageError(
                f"{path} holds only what it trained beside {train.start_from}: {error}"
            )
            continue
        _, frozen = partition(inherited, train.trainable)
        if (checkpoint.manifest() or {})["notes"]["frozen"] == fingerprint(frozen):
            params = merge_params(trainable, place_tree(frozen, mesh) if mesh else frozen, train)
            return model, params, replace(experiment, train=replace(train, start_from=place))
        failed = RunError(
            f"{train.start_from} has changed since {path} was initialized from it: bring it back"
        )
    assert failed is not None
    raise failed
