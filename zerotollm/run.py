"""A finished or running directory, opened from Python."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from zerotollm import run_directory
from zerotollm.components import model_of
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, translates
from zerotollm.model.build import Net, init_params
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.shell import launch

FRESH = 5
"""Models that learned nothing which a trained one is compared with: as few as an interval can be made of."""


@dataclass(frozen=True, repr=False)
class Run:
    """A trained model with all that belongs to it. See `load`."""

    path: Path
    experiment: Experiment
    model_config: TransformerConfig
    """the experiment's, with every size filled in"""
    step: int
    """optimizer steps that `params` have seen; the last of them where `params` are a mean"""
    params: dict[str, Any]
    """nested dict of arrays"""
    tokenizer: Any
    """zerotollm.data.tokens.sentencepiece.Tokenizer, or PretrainedTokenizer where the model was imported"""
    validation_bpb: float | None = field(default=None)
    """bits per byte of the validation split at that step, where it was measured"""
    labels: tuple[str, ...] = ()
    """of texts, where the model tells these"""

    @property
    def trained(self) -> Experiment:
        """The experiment with its model resolved, as the parameters have it."""
        return replace(self.experiment, model=self.model_config)

    @property
    def net(self) -> Net:
        """The model as a function: `run.net.apply({"params": run.params}, {"inputs": ids_BT}).logits()`."""
        return model_of(self.trained)

    def generate(self, prompt: str = "", **sampling: Any) -> str:
        """The prompt and its continuation, or its translation. `sampling` replaces fields of `experiment.sample`.

        >>> run.generate("In the beginning", max_tokens=40, temperature=0.7)

        Raises UsageError for a field that does not exist or a prompt longer than the context.
        """
        return "".join(self.stream(prompt, **sampling))

    def stream(self, prompt: str = "", **sampling: Any) -> Iterator[str]:
        """The same text piece by piece, as it is written; the first piece is the prompt."""
        from zerotollm.decoding.text import stream_text

        if self.labels:
            raise UsageError(f"{self.path} holds a model that labels texts and writes none: see classify")
        options = self._sampling({"prompt": prompt} | sampling)
        if self.model_config.architecture == "decoder" and translates(self.experiment):
            return (found[0].text for found in self.translate([prompt], **sampling))
        return stream_text(self.params, self.net, self.tokenizer, options)

    def translate(self, texts: Sequence[str], **sampling: Any) -> list[list[Any]]:
        """The best translations of each text, as pairs of text and score. `sampling` as in `generate`.

        >>> run.translate(["In the bigynnyng God made of nouyt heuene and erthe."], beam_size=8, n_best=3)

        Raises UsageError for a model that has not learned to translate and for a field that does not exist.
        """
        from zerotollm.decoding.translate import translate_texts

        if not translates(self.experiment):
            raise UsageError(
                f"{self.path} holds a model that has not learned to translate: it continues texts, see generate"
            )
        options = self._sampling(sampling)
        return translate_texts(self.params, self.net, self.tokenizer, texts, options)

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """The probability of every label of each text, the likeliest first.

        >>> run.classify(["In the beginning God created the heavens and the earth."])

        Raises UsageError for a model that does not label texts.
        """
        from zerotollm.components import label_step_of
        from zerotollm.evaluation.classification import label_probabilities

        if not self.labels:
            raise UsageError(f"{self.path} holds a model that writes text and tells no labels: see generate")
        model, tokenizer = self.model_config, self.tokenizer
        step = label_step_of(self.trained, tokenizer.pad_id)
        found_NK = label_probabilities(step, self.params, tokenizer, texts, max_length=model.max_length)
        rows = [zip(self.labels, map(float, row), strict=True) for row in found_NK]
        return [dict(sorted(row, key=lambda pair: -pair[1])) for row in rows]

    def explain(self, text: str, **sampling: Any) -> Any:
        """What this model does with a text, measured: a `zerotollm.explain.explanation.Explanation`.

        >>> run.explain("In the beginning").prediction.best_pieces

        `sampling` as in `generate`: its temperature and seed decide which token is drawn. Where the training text is
        not to be had, or has changed, answers that need it are left out. Raises UsageError for an empty text.
        """
        from zerotollm.explain.explanation import explain_text

        if self.labels:
            raise UsageError(
                f"{self.path} holds a model that labels texts, and explain asks how one predicts tokens"
            )
        if not text:
            raise UsageError('explain takes a text to look at, for example explain "In the beginning"')
        options = self._sampling(sampling)
        material = self.material()
        return explain_text(
            self.params,
            self.model_config,
            self.tokenizer,
            text,
            material=material,
            merges=self._merges(material),
            temperature=options.temperature,
            sampled=lambda logits_V: self._sampled(options, logits_V),
            draw=lambda logits_V, before: self._draw(options, logits_V, before),
            translate=lambda source: self.generate(source, **(sampling | {"n_best": 1})),
            fresh=self._fresh,
        )

    def study(self, text: str = "", samples: int = 8, tokens: int = 100) -> Any:
        """What the kept checkpoints and `samples` texts of `tokens` tokens show: an `explanation.RunExplanation`.

        Takes a minute or so. Step 0, the model before it learned anything, is made anew where training began with it.
        Raises UsageError where the training text is not to be had.
        """
        from zerotollm.explain.explanation import explain_run

        material = self.material(labels=True)
        if material is None:
            raise UsageError(
                f"the text of {self.experiment.data.corpus}, which {self.path} was trained with, is not here: "
                "bring it back"
            )
        pair = self.model_config.architecture == "encoder-decoder"
        return explain_run(
            self.checkpoints,
            self.model_config,
            self.tokenizer,
            material,
            samples=[] if pair else self._samples(samples, tokens),
            text=text,
            write=self._written if pair and translates(self.experiment) else None,
            fresh=self._fresh,
        )

    def _written(self, sources: Sequence[str]) -> list[str]:
        return [found[0].text for found in self.translate(sources, n_best=1)]

    def _fresh(self) -> Iterator[Any]:
        """Parameters of models that have learned nothing, the first as training began where it began with these."""
        import jax

        init = jax.jit(init_params, static_argnums=0)
        return (init(self.net, self.experiment.train.seed + k) for k in range(FRESH))

    def checkpoints(self) -> Iterator[tuple[int, Any]]:
        """(step, params) of what can be had of the run's history, the oldest first, ending with this run's own."""
        from zerotollm.training import checkpoints

        if self.step and not self.experiment.train.start_from:  # an imported model has no history
            yield 0, init_params(self.net, self.experiment.train.seed)
        for checkpoint in checkpoints.finished(self.path / run_directory.CHECKPOINTS):
            if checkpoint.step < self.step:
                yield checkpoint.step, checkpoints.restore_params(checkpoint)
        yield self.step, self.params

    def material(self, labels: bool = False) -> Any:
        """The tokens that the model learned from and those held out, an `explanation.Material`; None where the corpus
        cannot be had or has changed. Of pairs, both sides. With `labels` also the genre of held-out tokens, where it
        is known.
        """
        from zerotollm.data.tokens.text import prepare
        from zerotollm.explain.explanation import ReferenceText

        train = self.experiment.train
        own = not train.start_from and self.tokenizer.kind != "pretrained"
        known = self.experiment.tokenizer if own else self.tokenizer
        if self.model_config.architecture == "encoder-decoder":
            return self._pair_material(known)
        try:
            prepared = prepare(self.experiment.data, known)
        except (UsageError, OSError):
            return None
        if prepared.tokenizer != self.tokenizer:
            return None
        held_out = prepared.splits["validation"]
        known = {"the genre": self._genres(held_out)} if labels else {}
        bos = held_out.special.bos if self.experiment.data.document_mask else None
        return ReferenceText(prepared.splits["train"].tokens_N, held_out.tokens_N, known, document_bos=bos)

    def _pair_material(self, known: Any) -> Any:
        """`material` of an encoder-decoder: whatever it learned from, its held-out batches are of pairs."""
        import numpy as np

        from zerotollm.data.feed import open_feed
        from zerotollm.data.tokens.pairs import prepare_pairs
        from zerotollm.data.tokens.text import prepare
        from zerotollm.explain.explanation import READ, ReferenceText
        from zerotollm.explain.pair_activations import Pair

        data, objective = self.experiment.data, self.experiment.train.objective
        try:
            if objective == "likelihood":
                split = prepare_pairs(data, known).splits["train"]
                sides = [side.tokens_N[: READ // 2] for side in (split.sources, split.targets)]
                train_N = np.concatenate(sides)
            else:
                train_N = prepare(data, known).splits["train"].tokens_N
            feed = open_feed(data, known, objective=objective, pairs=True)
            batches = feed.evaluation("validation")
        except (UsageError, OSError):
            return None
        if feed.tokenizer != self.tokenizer:
            return None
        pairs = [
            Pair(source_W[source_W != self.tokenizer.pad_id], target_W[weight_W > 0])
            for batch in (batches[number] for number in range(len(batches)))
            for source_W, target_W, weight_W in zip(
                batch["sources"], batch["targets"], batch["weights"], strict=True
            )
            if weight_W.any()
        ]
        held_out_N = np.concatenate([pair.target_T for pair in pairs])
        return ReferenceText(train_N, held_out_N[held_out_N < self.tokenizer.vocab_size], pairs=tuple(pairs))

    def _merges(self, material: Any) -> Any:
        """The merges that made the tokenizer, counted in the training text; kept beside the prepared data."""
        from zerotollm.data.cache_folder import data_directory
        from zerotollm.explain import merges
        from zerotollm.explain.explanation import READ

        if material is None or self.tokenizer.kind != "bpe":
            return None
        folder = data_directory(self.experiment.data) / "merges"
        return merges.remembered(folder, self.tokenizer, material.train_N[:READ])

    def _genres(self, split: Any) -> Any:
        """A number for the genre of the document of each validation token, -1 where it has none."""
        import numpy as np

        from zerotollm.data.sources.corpora import open_corpus

        documents = open_corpus(self.experiment.data).splits["validation"]
        genres = [document.metadata.get("genre", "") for document in documents]
        names = sorted({str(genre) for genre in genres if genre})
        label_D = np.array([names.index(str(genre)) if genre else -1 for genre in genres], np.int64)
        lengths_D = np.diff(np.append(split.document_starts_D, len(split.tokens_N)))
        return np.repeat(label_D, lengths_D)

    def _samples(self, count: int, tokens: int) -> list[Any]:
        """Ids of new documents that the model begins and writes on, each with a seed of its own, by the probabilities
        that it is scored with."""
        import numpy as np

        from zerotollm.decoding import sample

        return sample.generate(
            self.params,
            self.net,
            [np.array([self.tokenizer.bos_id], np.int32)] * count,
            self._sampling(
                {
                    "max_tokens": min(tokens, self.model_config.max_length - 1),
                    "temperature": 1.0,
                    "top_k": 0,
                    "top_p": 1.0,
                    "min_p": 0.0,
                }
            ),
            stop_id=self.model_config.vocab_size,  # never drawn: texts of one length compare
            num_tokens=self.tokenizer.vocab_size,
        )

    def _sampled(self, options: Any, logits_V: Any) -> Any:
        """The probabilities that `generate` draws with."""
        import jax
        import numpy as np

        from zerotollm.decoding import sample

        if not options.temperature:
            return np.eye(len(logits_V))[np.argmax(logits_V)]
        scaled_BV = np.asarray(logits_V / options.temperature, np.float32)[None]
        if options.top_k > 0 or options.top_p < 1 or options.min_p > 0:
            scaled_BV = sample.filter_logits(scaled_BV, sample.SamplingParams.of(options))
        return np.asarray(jax.nn.softmax(scaled_BV)[0], np.float64)

    def _draw(self, options: Any, logits_V: Any, before: int) -> int:
        """The token that `generate` would draw first."""
        import jax
        import numpy as np

        from zerotollm.decoding import sample

        real_V = np.arange(len(logits_V)) < self.tokenizer.vocab_size
        logits_BV = np.where(real_V, logits_V, -np.inf)[None].astype(np.float32)

        @jax.jit  # the choice as constants: what it does not ask for, sorting above all, is not compiled
        def draw(logits_BV: Any, before_B: Any) -> Any:
            return sample.draw(logits_BV, sample.SamplingParams.of(options), before_B)

        return int(np.asarray(draw(logits_BV, np.array([before])))[0])

    def _sampling(self, changes: dict[str, Any]) -> Any:
        known = self.experiment.sample.__dataclass_fields__
        for name in changes:
            if name not in known:
                raise UsageError(f"unknown option {name}: one of {', '.join(known)}")
        return replace(self.experiment.sample, **changes)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far: `[{"step": 10, "loss": 6.1, ...}, ...]`."""
        from zerotollm.training.metrics import read_metrics

        return read_metrics(self.path / run_directory.METRICS)

    def __repr__(self) -> str:
        model = self.model_config
        bpb = f", {self.validation_bpb:.4f} bits per byte" if self.validation_bpb is not None else ""
        return (
            f"Run({str(self.path)!r}: {self.num_parameters:,} parameters, {model.num_layers} layers, "
            f"width {model.width}, vocabulary {model.vocab_size}; step {self.step}{bpb})"
        )

    @property
    def num_parameters(self) -> int:
        import jax

        return sum(x.size for x in jax.tree.leaves(self.params))


def default_step(experiment: Experiment) -> str:
    """Which parameters are meant where nobody says: "average" where `train.average` asks for it, else "best"."""
    return "average" if experiment.train.average > 1 else "best"


def load(path: str | Path, step: int | str = "", mesh: Any = None) -> Run:
    """Opens a run directory: `run = load("runs/base")`.

    `step` chooses the checkpoint: "best" (lowest validation bits per byte), "last", "average" (the mean of the
    newest `train.average`), or the number of a step that was kept; empty: see `default_step`. On a `mesh` (of
    `zerotollm.sharding.rules.make_mesh`) each device holds its part of the parameters. Raises UsageError
    where there is no run, no checkpoint yet or no such step; RunError where the checkpoint is damaged.
    """
    path = Path(path).expanduser()
    written = run_directory.read_experiment(path)
    experiment = run_directory.located(path, written)

    from zerotollm.data.feed import sentinels
    from zerotollm.data.tokens.sentencepiece import load_tokenizer
    from zerotollm.sharding.rules import shardings
    from zerotollm.training import checkpoints
    from zerotollm.training.lora import trains_subset

    directory = path / run_directory.CHECKPOINTS
    kept = {c.step: c for c in checkpoints.finished(directory)}
    if not kept:
        raise UsageError(
            f"{path} has no checkpoint yet: train it with {launch(('run_dir', path))}, or wait for its first one"
        )
    step = step or default_step(experiment)
    averaged: list[checkpoints.Checkpoint] = []
    if step == "average":
        averaged = checkpoints.averaged(list(kept.values()), experiment.train)
        checkpoint = averaged[-1]
    elif step == "best":
        checkpoint = checkpoints.best(list(kept.values()))
    elif step == "last":
        checkpoint = kept[max(kept)]
    elif step in kept:
        checkpoint = kept[step]
    else:
        raise UsageError(
            f"{path} has no checkpoint of step {step}: best, last, average or one of {', '.join(map(str, kept))}"
        )
    tokenizer = load_tokenizer(path / run_directory.TOKENIZER)
    where = mesh and partial(shardings, mesh=mesh)
    from_one = partial(checkpoints.restore_params, checkpoint)
    from_many = partial(checkpoints.average_params, averaged)
    params = (from_many if averaged else from_one)(where)
    config, labels = experiment.model, run_directory.read_labels(path)
    if trains_subset(experiment.train):
        config, params, experiment = _whole(path, written, params, checkpoint, labels, mesh)
    return Run(
        path=path,
        experiment=experiment,
        # A run that began with another one's parameters has as many rows as that.
        model_config=resolve(
            replace(config, vocab_size=params["embedding"].shape[0], num_classes=len(labels)),
            vocab_size=tokenizer.vocab_size + sentinels(experiment.train.objective),
            context=experiment.data.context,
        ),
        step=checkpoint.step,
        params=params,
        tokenizer=tokenizer,
        validation_bpb=None if len(averaged) > 1 or labels else checkpoint.bpb(),
        labels=labels,
    )


def _whole(
    path: Path, experiment: Experiment, trained: Any, checkpoint: Any, labels: Any, mesh: Any
) -> tuple[TransformerConfig, Any, Experiment]:
    """(model, all parameters, experiment with the place of the other run) of a run that trained but a part of those of
    another one, or adapters. Where several places may be meant, it is the one with the same parameters."""
    from zerotollm.sharding.rules import place_tree
    from zerotollm.training.lora import merge_params, partition
    from zerotollm.training.parameter_transfer import fingerprint, transfer_params

    train = experiment.train
    failed: UsageError | RunError | None = None
    for place in run_directory.starts(path, train.start_from) or [train.start_from]:
        try:
            start = load(place)
            model = replace(start.model_config, dropout=experiment.model.dropout, num_classes=len(labels))
            net = model_of(replace(experiment, model=model))
            given = transfer_params(start.params, net, place, same_labels=start.labels == labels)
        except UsageError as error:
            failed = failed or UsageError(
                f"{path} holds only what it trained beside {train.start_from}: {error}"
            )
            continue
        _, frozen = partition(given, train.trainable)
        if checkpoint.manifest()["notes"]["frozen"] == fingerprint(frozen):
            params = merge_params(trained, place_tree(frozen, mesh) if mesh else frozen, train)
            return model, params, replace(experiment, train=replace(train, start_from=place))
        failed = RunError(f"{train.start_from} has changed since {path} was begun with it: bring it back")
    raise failed
