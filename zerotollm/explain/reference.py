"""The text that a run was trained on and its held-out text, read again for explanations."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from zerotollm.components import dataset_of
from zerotollm.data.cache_folder import data_directory
from zerotollm.data.feed import Feed
from zerotollm.data.lazy_sequence import LazySequence, joined
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.documents import Corpus, Document
from zerotollm.data.tokens.cache import Prepared
from zerotollm.data.tokens.pairs import prepare_pairs
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer
from zerotollm.data.tokens.suffix_array import cached_suffix_array
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.data.tokens.text_sources import prepare_sources, text_sources
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, makes_tokenizer
from zerotollm.explain.explanation import COUNTED_TOKENS, INDEXED_TOKENS, ReferenceText
from zerotollm.explain.merges import Merges, cached_merges
from zerotollm.explain.pair_activations import Pair
from zerotollm.explain.sources import Documents


def reference_text(
    experiment: Experiment, tokenizer: AnyTokenizer, genres: bool = False
) -> ReferenceText | None:
    """Return the tokens trained on and those held out, of pairs both sides; None if the text is missing or has changed.

    `experiment` has its model resolved. With `genres`, held-out tokens are labelled with their genre, if it is known.
    """
    trained_here = makes_tokenizer(experiment) and tokenizer.kind != "pretrained"
    source = experiment.tokenizer if trained_here else tokenizer
    pairs = experiment.model.encoder_layers > 0
    prepared = None
    try:
        if pairs and experiment.train.objective == "likelihood":
            split = prepare_pairs(experiment.data, source).splits["train"]
            sides = [side.tokens_N[: COUNTED_TOKENS // 2] for side in (split.sources, split.targets)]
            train_N = np.concatenate(sides)
        else:
            opened = text_sources(experiment.data, source)
            prepared = prepare_sources(opened)
            trained = [tokens.splits["train"].tokens_N for tokens in prepared]
            share = COUNTED_TOKENS // len(trained) if len(trained) > 1 else len(trained[0])
            train_N = np.concatenate([x_N[:share] for x_N in trained]) if len(trained) > 1 else trained[0]
        feed = dataset_of(experiment, tokenizer=None if trained_here else tokenizer) if pairs else None
    except (UsageError, OSError):
        return None
    if feed:
        if feed.tokenizer != tokenizer:
            return None
        held_out = _held_out_pairs(feed, tokenizer)
        held_out_N = np.concatenate([pair.target_T for pair in held_out])
        return ReferenceText(train_N, held_out_N[held_out_N < tokenizer.vocab_size], pairs=held_out)
    if prepared is None or prepared[0].tokenizer != tokenizer:
        return None
    held_out = [tokens.splits["validation"] for tokens in prepared]
    held_out_N = (
        np.concatenate([split.tokens_N for split in held_out]) if held_out[1:] else held_out[0].tokens_N
    )
    labels = {"the genre": _genres(experiment, held_out)} if genres else {}
    bos = held_out[0].special.bos if experiment.data.document_mask else None
    documents = training_documents([source.corpus for source in opened], prepared, share)
    suffixes = cached_suffix_array(data_directory(experiment.data) / "suffixes", train_N[:INDEXED_TOKENS])
    return ReferenceText(
        train_N, held_out_N, labels, document_bos=bos, suffixes=suffixes, documents=documents
    )


def training_documents(
    corpora: Sequence[Corpus[Document]], prepared: Sequence[Prepared[TokenizedSplit]], share: int
) -> Documents:
    """Return the documents of the first `share` training tokens of each corpus. Streamed ones have no names."""
    starts, names, first = [], [], 0
    for corpus, tokens in zip(corpora, prepared, strict=True):
        split = tokens.splits["train"]
        start_D = split.document_starts_D[split.document_starts_D < share]
        starts.append(first + np.asarray(start_D))
        names.append(LazySequence(len(start_D), partial(_document_name, corpus.splits["train"])))
        first += min(share, len(split.tokens_N))
    return Documents(np.concatenate(starts), joined(names))


def _document_name(documents: Sequence[Document], number: int) -> str:
    return documents[number].id if documents else f"document {number + 1:,}"


def training_merges(
    experiment: Experiment, tokenizer: AnyTokenizer, reference: ReferenceText | None
) -> Merges | None:
    """Return the merges that made the tokenizer, counted in the training text; cached beside the prepared data."""
    if reference is None or not isinstance(tokenizer, Tokenizer) or tokenizer.kind != "bpe":
        return None
    folder = data_directory(experiment.data) / "merges"
    return cached_merges(folder, tokenizer, reference.train_N[:COUNTED_TOKENS])


def _held_out_pairs(feed: Feed, tokenizer: AnyTokenizer) -> tuple[Pair, ...]:
    batches, sides, pairs = feed.evaluation("validation"), ("sources", "targets", "weights"), []
    for number in range(len(batches)):
        batch = batches[number]
        for source_W, target_W, weight_W in zip(*(batch[side] for side in sides), strict=True):
            if weight_W.any():
                pairs.append(Pair(source_W[source_W != tokenizer.pad_id], target_W[weight_W > 0]))
    return tuple(pairs)


def _genres(experiment: Experiment, splits: Sequence[TokenizedSplit]) -> np.ndarray:
    """Return a number for the genre of each validation token's document, -1 where it has none."""
    corpus = open_corpus(experiment.data)
    if corpus.parts:  # streamed: only its tokens are here
        return np.full(sum(len(split.tokens_N) for split in splits), -1)
    documents = corpus.splits["validation"]
    genres = [str(document.metadata.get("genre", "")) for document in documents]
    names = sorted({genre for genre in genres if genre})
    label_D = np.array([names.index(genre) if genre else -1 for genre in genres], np.int64)
    lengths_D = np.concatenate([np.diff(np.append(s.document_starts_D, len(s.tokens_N))) for s in splits])
    return np.repeat(label_D, lengths_D)
