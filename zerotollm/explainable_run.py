"""A run that can also be explained and exported: what `zerotollm.load` returns."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zerotollm import run as runs
from zerotollm.decoding import sample
from zerotollm.decoding.text import continue_tokens
from zerotollm.errors import UsageError
from zerotollm.evaluation.grammar_history import grammar_history
from zerotollm.evaluation.likelihood import read_question_files, require_language_model
from zerotollm.experiment import continues, translates
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
from zerotollm.interop.config import Dtype, Format
from zerotollm.model.build import Params, init_params
from zerotollm.run import Run
from zerotollm.session.exported_files import Exported, write_export

FRESH = 5
"""Randomly initialized models that a trained one is compared with: the fewest that give an interval."""
UNTRAINED = 20
"""Such models that measure chance in minimal pairs, where a few more make the intervals much narrower."""
NO_JUDGE = "only a model that continues a text finds one sentence likelier than another"
NO_PAIRS = "give a folder of minimal pairs, such as BLiMP's, with --judge"


class ExplainableRun(Run):
    """A `Run` that can be explained, patched, traced to its training text, and exported. See `load`.

    Its imports take half a second, which actions that only write text do not need: they open a `Run`.
    """

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

    def export(
        self, out: str | Path, *, format: Format = "huggingface", dtype: Dtype = "float32"
    ) -> Exported:
        """Write the model to a new folder or file, as the action does, and return what was written.

        >>> print(run.export("my_model", format="c").show())

        Raises UsageError if the format has no such model.
        """
        return write_export(self, Path(out), format, dtype)

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


def load(path: str | Path, step: int | str = "", mesh: Mesh | None = None) -> ExplainableRun:
    """Open a run directory: `run = load("runs/base")`.

    `step` chooses the checkpoint: "best" (lowest validation bits per byte), "last", "average" (the mean of the
    newest `train.average`), or the number of a step that was kept; empty: "average" if `train.average` asks for it,
    else "best". On a `mesh` (of `zerotollm.sharding.rules.make_mesh`) each device holds its part of the parameters.
    Raises UsageError where there is no run, no checkpoint yet or no such step; RunError where the checkpoint is
    damaged.
    """
    return ExplainableRun(**vars(runs.load(path, step, mesh)))
