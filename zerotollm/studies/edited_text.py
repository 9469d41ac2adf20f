"""Train an experiment in memory on its training text with some tokens changed: the cause of what a model knows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from zerotollm.data.batches.windows import Batch, training_batches
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.data.tokens.text_sources import prepare_sources, text_sources
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, continues
from zerotollm.explain.reference import training_documents
from zerotollm.explain.sources import Documents
from zerotollm.explain.words import KINDS, token_kinds
from zerotollm.host.allocator import reuse_memory
from zerotollm.session.train_in_memory import Fitted, Programs, compile_programs, fit


@dataclass(frozen=True)
class EditableText:
    """An experiment's compiled training, and the training text that it reads."""

    programs: Programs
    split: TokenizedSplit
    documents: Documents
    """of the training text"""

    @property
    def tokenizer(self) -> AnyTokenizer:
        return self.programs.feed.tokenizer

    @property
    def epochs(self) -> float:
        """How often a run reads its text."""
        experiment = self.programs.experiment
        return experiment.train.steps * self.programs.feed.tokens_per_step / len(self.split.tokens_N)

    def fit(
        self, tokens_N: np.ndarray, seed: int, progress: Callable[[int], None] = lambda step: None
    ) -> Fitted:
        """Train one seed on other training tokens. Raises DivergedError where a loss is not finite."""
        data = self.programs.experiment.data
        split = replace(self.split, tokens_N=tokens_N)

        def training(*, seed: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]:
            options = {"seed": seed, "process_index": process_index, "process_count": process_count}
            return training_batches(split, context=data.context, batch_size=data.batch_size, **options)

        feed = replace(self.programs.feed, training=training, tokens=len(tokens_N))
        programs = replace(self.programs, training=replace(self.programs.training, feed=feed))
        return fit(programs, (seed,), progress)[0]


def editable_text(experiment: Experiment) -> EditableText:
    """Prepare the text and compile the training.

    Raises UsageError unless the experiment trains a built-in decoder on one plain text.
    """
    own = sorted({"model", "dataset"} & set(experiment.code.functions))
    if own or not continues(experiment) or experiment.train.objective != "likelihood" or experiment.data.old:
        reason = (
            f"its file has its own {own[0]}"
            if own
            else "it trains on something else, or on a second text too"
        )
        raise UsageError(f"{experiment.name} is not a built-in decoder trained on plain text ({reason})")
    reuse_memory(experiment.data.batch_size * experiment.data.context * experiment.model.width)
    programs = compile_programs(experiment)
    sources = text_sources(experiment.data, programs.feed.tokenizer)
    if len(sources) > 1:
        raise UsageError(
            f"{experiment.data.corpus} is a mixture, and passages are changed in one text: choose one"
        )
    (prepared,) = prepare_sources(sources)
    split = prepared.splits["train"]
    documents = training_documents([sources[0].corpus], [prepared], len(split.tokens_N))
    return EditableText(programs, split, documents)


def ordinary_ids(text: EditableText) -> np.ndarray:
    """Return the ids of words and parts of words that occur in the training text; all that occur if there are few."""
    kinds_V = token_kinds(text.tokenizer)
    seen_V = np.bincount(text.split.tokens_N, minlength=len(kinds_V))[: len(kinds_V)] > 0
    words_V = seen_V & np.isin(kinds_V, [KINDS.index("word"), KINDS.index("word part")])
    return np.flatnonzero(words_V if words_V.sum() > 1 else seen_V)
