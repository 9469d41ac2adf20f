"""The corpora of a mixture, each with tokens of its own and all with one tokenizer.

The tokenizer is trained on the training text of all of them, whatever their weights: other weights change no token.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.documents import Corpus, Document, training_texts
from zerotollm.data.sources.weighted import weighted_sources
from zerotollm.data.tokens.cache import Counts, Prepared, is_intact, open_cache, token_folder
from zerotollm.data.tokens.helper import helped
from zerotollm.data.tokens.sentencepiece import SAMPLE_CHARACTERS, AnyTokenizer, tokenizer_key
from zerotollm.data.tokens.shards import LARGE, Progress, prepare_in_shards
from zerotollm.data.tokens.text import FORMAT, SAMPLED, TokenizedSplit, prepare, text_folder

LONG = 50_000_000  # characters; starting a process takes about the time of a tenth of it


class TextSource(NamedTuple):
    """One corpus of a mixture, or the only one of a text."""

    data: DataConfig  # its corpus is this source
    weight: Fraction  # share of the training windows
    corpus: Corpus[Document]
    tokenizer: TokenizerConfig | AnyTokenizer


def text_sources(data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer) -> list[TextSource]:
    """Open the corpora of `data.corpus`, and train the tokenizer that several of them share."""
    opened = {
        name: (replace(data, corpus=name), weight) for name, weight in weighted_sources(data.corpus).items()
    }
    corpora = {name: open_corpus(source) for name, (source, _) in opened.items()}
    if len(corpora) > 1 and isinstance(tokenizer, TokenizerConfig):
        key = [
            "mixture",
            FORMAT,
            [corpus.fingerprint for corpus in corpora.values()],
            tokenizer_key(tokenizer),
        ]
        tokenizer = open_cache(
            token_folder(data, "mixture", key),
            tokenizer,
            lambda: (
                text for corpus in corpora.values() for text in training_texts(corpus, SAMPLE_CHARACTERS)
            ),
            _write_nothing,
        ).tokenizer
    return [TextSource(*opened[name], corpus, tokenizer) for name, corpus in corpora.items()]


def _write_nothing(folder: Path, tokenizer: AnyTokenizer) -> Counts:
    return Counts()


def prepare_sources(
    sources: list[TextSource],
    *,
    shards: int = 0,
    helpers: int = 0,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda done, total: None,
) -> list[Prepared[TokenizedSplit]]:
    """Return the tokens of every source. Large ones, or with `shards` all, are prepared in shards.

    Up to `helpers` further processes take part where the text is long enough.
    """
    prepared = []
    for data, _, corpus, tokenizer in sources:
        if shards:
            number = (
                helpers if _is_long(corpus) and not is_intact(text_folder(data, corpus, tokenizer)) else 0
            )
            with helped(data, tokenizer, shards=shards, helpers=number):
                prepare_in_shards(data, tokenizer, shards=shards, say=say, progress=progress, corpus=corpus)
        elif corpus.parts or len(corpus.splits["train"]) >= LARGE:
            prepare_in_shards(data, tokenizer, progress=progress, corpus=corpus)
        prepared.append(prepare(data, tokenizer, corpus))
    return prepared


def _is_long(corpus: Corpus[Document]) -> bool:
    """Return whether starting another process is worth its time: a streamed text, or one of `LONG` characters."""
    documents = corpus.splits["train"]
    sample = [documents[k * len(documents) // SAMPLED] for k in range(SAMPLED if documents else 0)]
    mean = sum(len(document.text) for document in sample) / SAMPLED
    return bool(corpus.parts) or mean * len(documents) >= LONG
