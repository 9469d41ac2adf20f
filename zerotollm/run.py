"""A finished or running directory, opened from Python."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zerotollm import run_directory
from zerotollm.components import label_step_of, model_of
from zerotollm.data.feed import sentinels
from zerotollm.data.tokens.conversations import EncodeConversation, conversation_encoder
from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, load_tokenizer
from zerotollm.decoding import sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import continue_tokens, stream_text
from zerotollm.decoding.translate import Translation, translate_texts
from zerotollm.errors import RunError, UsageError
from zerotollm.evaluation.classification import label_probabilities
from zerotollm.evaluation.grammar_history import grammar_history
from zerotollm.evaluation.likelihood import read_question_files, require_language_model
from zerotollm.experiment import Experiment, continues, translates
from zerotollm.explain.activations import LanguageModel
from zerotollm.explain.explanation import (
    Explanation,
    ReferenceText,
    RunExplanation,
    Sampler,
    explain_run,
    explain_text,
)
from zerotollm.explain.patching import Patching, patch_texts
from zerotollm.explain.reference import reference_text, training_merges
from zerotollm.explain.sources import Sources, encode_within
from zerotollm.model.build import Net, Params, init_params
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.sharding.rules import place_tree, shardings
from zerotollm.training import checkpoints
from zerotollm.training.checkpoints import Checkpoint
from zerotollm.training.lora import LORA, merge_params, partition, trains_subset
from zerotollm.training.metrics import read_metrics
from zerotollm.training.parameter_transfer import fingerprint, transfer_params
from zerotollm.types import Json

FRESH = 5
"""Randomly initialized models that a trained one is compared with: the fewest that give an interval."""
UNTRAINED = 20
"""Such models that measure chance in minimal pairs, where a few more make the intervals much narrower."""
NO_JUDGE = "only a model that continues a text finds one sentence likelier than another"
NO_PAIRS = "give a folder of minimal pairs, such as BLiMP's, with --judge"


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

    def explain(self, text: str, **sampling: Any) -> Explanation:
        """Return what this model does with a text, measured.

        >>> run.explain("In the beginning").prediction.best_pieces

        `sampling` as in `generate`: its temperature and seed decide which token is drawn. Answers that need the
        training text are left out where it is not found or has changed. Raises UsageError for an empty text.
        """
        self._refuse_to_explain()
        if not text:
            raise UsageError('explain takes a text to look at, for example explain "In the beginning"')
        options, utf8 = self._sampling(**sampling), self.tokenizer.utf8
        reference = reference_text(self.trained, self.tokenizer)
        return explain_text(
            self.params,
            self.model_config,
            self.tokenizer,
            text,
            reference=reference,
            merges=training_merges(self.experiment, self.tokenizer, reference),
            sampler=Sampler(
                options.temperature,
                probabilities=partial(sample.probabilities, options, utf8),
                draw=partial(sample.draw_one, options, utf8),
            ),
            translate=lambda texts: [self.generate(text, **(sampling | {"n_best": 1})) for text in texts],
            continue_text=partial(continue_tokens, self.params, self.net, self.tokenizer, options),
            fresh=self._fresh,
        )

    def patch(
        self,
        clean: str | Sequence[str],
        corrupted: str | Sequence[str],
        answers: tuple[str, str] | None = None,
    ) -> Patching:
        """Return which states and heads carry the difference between two texts, by activation patching.

        >>> run.patch("And the king said to his", "And the queen said to his").show()

        Lists of texts are pairs of one form; only several pairs give intervals. `answers` are the two continuations
        that are compared, by default the likeliest token after each text. Raises UsageError for texts that differ in
        their number of tokens, for equal answers, and for an encoder-decoder.
        """
        self._refuse_to_explain()
        if self.model_config.encoder_layers:
            raise UsageError(f"{self.path} holds an encoder-decoder, and patch reads decoders: see explain")
        pairs = [([text] if isinstance(text, str) else list(text)) for text in (clean, corrupted)]
        if not pairs[0] or len(pairs[0]) != len(pairs[1]):
            raise UsageError(
                f"patch has {len(pairs[0])} clean and {len(pairs[1])} corrupted texts: give pairs"
            )
        reference = reference_text(self.trained, self.tokenizer)
        lm = LanguageModel(self.params, self.model_config, self.tokenizer)
        held_out_N = None if reference is None else reference.held_out_N
        return patch_texts(lm, list(zip(*pairs, strict=True)), answers, held_out_N)

    def sources(self, text: str) -> Sources:
        """Return the spans of a text that are in the training text, with the passages most like their context.

        >>> run.sources(run.generate("In the beginning")).show()

        Takes milliseconds after the first call, which sorts the training text. Raises UsageError for an empty text, and
        where the training text is not found or has changed.
        """
        if not text:
            raise UsageError('sources takes a text to look up: run.sources("In the beginning")')
        reference = self._reference()
        text_T = encode_within(text, reference.searchable(), self.tokenizer)
        return reference.sources_of(text_T, self.tokenizer, "the text")

    def study(
        self, text: str = "", samples: int = 8, tokens: int = 100, judge: str | Path = ""
    ) -> RunExplanation:
        """Return what the kept checkpoints and `samples` texts of `tokens` tokens show; takes about a minute.

        `judge` is a folder of minimal pairs such as BLiMP's, for when each phenomenon was learned; a few minutes more.
        Step 0, the untrained model, is initialized again where training began with it. Raises UsageError where the text
        or the pairs are not found.
        """
        self._refuse_to_explain()
        if judge:
            require_language_model(self.experiment, self.path)
        questions = read_question_files(Path(judge)) if judge else []
        reference = self._reference(genres=True)
        pairs = self.model_config.encoder_layers > 0
        explanation = explain_run(
            self.checkpoints,
            self.model_config,
            self.tokenizer,
            reference,
            samples=[] if pairs else self._samples(samples, tokens),
            text=text,
            translate=self._translations if pairs and translates(self.experiment) else None,
            fresh=self._fresh,
        )
        if not questions:
            return explanation.without("grammar", NO_PAIRS if continues(self.experiment) else NO_JUDGE)
        fresh, model, train_N = self._fresh(UNTRAINED), self.model_config, reference.train_N
        grammar = grammar_history(self.checkpoints(), fresh, model, self.tokenizer, questions, train_N)
        return replace(explanation, grammar=grammar)

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

    def _refuse_to_explain(self) -> None:
        self.require_built_in_model("explain")
        if self.labels:
            raise UsageError(
                f"{self.path} holds a model that labels texts, and explain asks how one predicts tokens"
            )

    def _reference(self, genres: bool = False) -> ReferenceText:
        reference = reference_text(self.trained, self.tokenizer, genres)
        if reference is None:
            raise UsageError(
                f"the text of {self.experiment.data.corpus}, which {self.path} was trained with, is not here: "
                "bring it back"
            )
        return reference

    def _translations(self, sources: Sequence[str]) -> list[str]:
        return [found[0].text for found in self.translate(sources, n_best=1)]

    def _fresh(self, count: int = FRESH) -> Iterator[Params]:
        """Yield parameters of untrained models, first those that training began with."""
        init = jax.jit(init_params, static_argnums=0)
        return (init(self.net, self.experiment.train.seed + k) for k in range(count))

    def _samples(self, count: int, tokens: int) -> list[np.ndarray]:
        """Return the ids of new documents that the model writes, sampled at temperature 1 without filters."""
        most = min(tokens, self.model_config.max_length - 1)
        return sample.generate(
            self.params,
            self.net,
            [np.array([self.tokenizer.bos_id], np.int32)] * count,
            self._sampling(max_tokens=most, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
            stop_ids=(),  # texts of one length compare
            utf8=self.tokenizer.utf8,
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


def default_step(experiment: Experiment) -> str:
    """Return the checkpoint that is meant if none is named: "average" if `train.average` asks for it, else "best"."""
    return "average" if experiment.train.average > 1 else "best"


def load(path: str | Path, step: int | str = "", mesh: Mesh | None = None) -> Run:
    """Open a run directory: `run = load("runs/base")`.

    `step` chooses the checkpoint: "best" (lowest validation bits per byte), "last", "average" (the mean of the
    newest `train.average`), or the number of a step that was kept; empty: see `default_step`. On a `mesh` (of
    `zerotollm.sharding.rules.make_mesh`) each device holds its part of the parameters. Raises UsageError
    where there is no run, no checkpoint yet or no such step; RunError where the checkpoint is damaged.
    """
    path = Path(path).expanduser()
    written = run_directory.read_experiment(path)
    experiment = run_directory.located(path, written)
    folder = path / run_directory.CHECKPOINTS
    averaged = checkpoints.choose(folder, experiment.train, step or default_step(experiment))
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
