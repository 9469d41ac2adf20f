"""The batches of an experiment."""

from collections.abc import Callable
from pathlib import Path

from zerotollm import run_directory
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.feed import Feed, open_feed
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, load_tokenizer
from zerotollm.experiment import Experiment


def feed_of(
    experiment: Experiment,
    tokenizer: AnyTokenizer | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Feed:
    """The experiment's batches, prepared if they must be. A `tokenizer` that was not made
    from the text is given, or else is that of `train.start_from`. `progress`: see `open_feed` there."""
    return open_feed(
        experiment.data,
        tokenizer or tokenizer_of(experiment),
        objective=experiment.train.objective,
        pairs=experiment.model.architecture == "encoder-decoder",
        micro_batches=experiment.train.micro_batches,
        progress=progress,
    )


def tokenizer_of(experiment: Experiment) -> TokenizerConfig | AnyTokenizer:
    """That of `train.start_from`, or else how one is made of the text."""
    start = experiment.train.start_from
    return load_tokenizer(Path(start) / run_directory.TOKENIZER) if start else experiment.tokenizer
