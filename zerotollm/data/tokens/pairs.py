"""Parallel corpus -> one tokenizer for both sides -> tokens, prepared once: `tokens.py` for pairs."""

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.pairs import ParallelCorpus, as_sentence, usable_pairs
from zerotollm.data.sources.parallel import open_parallel
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, SpecialIds, load_tokenizer
from zerotollm.data.tokens.text import (
    TOKENIZER,
    TokenizedSplit,
    open_folder,
    read_split,
    settings,
    token_folder,
    tokenizer_for,
    write_manifest,
    write_split,
)

FORMAT = 2
"""To be raised with every change to what is made of the pairs, besides those of `tokens.py`."""
SIDES = ("source", "target")


@dataclass(frozen=True)
class TokenizedPairs:
    """The pairs of a split: text i of `sources` is translated by text i of `targets`."""

    sources: TokenizedSplit
    targets: TokenizedSplit
    target_bytes_N: np.ndarray
    """of each target's text in UTF-8 that its tokens give back, without the space that is put before it"""

    def __len__(self) -> int:
        return len(self.targets.document_starts_D)

    @cached_property
    def side_lengths(self) -> np.ndarray:
        """Tokens of source and target, each with its eos; int64 [pairs, 2]."""
        return np.stack([_lengths(self.sources), _lengths(self.targets)], axis=-1)

    def no_longer_than(self, length: int) -> np.ndarray:
        """Numbers of the pairs both sides of which have at most so many tokens, eos included."""
        return np.flatnonzero((self.side_lengths <= length).all(axis=1))


def _lengths(side: TokenizedSplit) -> np.ndarray:
    # A stored text begins with bos; as many tokens are left when that is taken off and eos put at the end.
    return np.diff(np.append(side.document_starts_D, len(side.tokens_N)))


@dataclass(frozen=True)
class PreparedPairs:
    """All that training needs of a parallel corpus."""

    corpus: str
    tokenizer: AnyTokenizer
    splits: dict[str, TokenizedPairs]
    dropped: dict[str, dict[str, int]]
    """of each split: pairs left out, by reason"""
    own: int
    """training pairs of the corpus itself; those after them are of `data.extra`"""
    lost: dict[str, int]
    """of each split: UTF-8 bytes of the targets that the tokens do not give back"""


def prepare_pairs(data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer) -> PreparedPairs:
    """The tokens of `data.corpus`, made by a tokenizer that was trained on both sides of its training split, or given.

    Raises UsageError where the corpus cannot be had or the vocabulary does not suit it, RunError where the data
    directory cannot be written.
    """
    corpus = open_parallel(data)
    folder = token_folder(data, corpus.name, ["pairs", FORMAT, corpus.fingerprint, settings(tokenizer)])
    manifest = open_folder(folder, lambda temporary: _build(temporary, corpus, tokenizer))
    used = load_tokenizer(folder / TOKENIZER)
    special, splits, lost = SpecialIds.of(used), {}, manifest.get("lost", {})
    for split in manifest["dropped"]:
        bytes_N = np.fromfile(folder / f"{split}.bytes", "<i8")
        about = manifest["dtype"], int(bytes_N.sum()), special, lost.get(split, 0)
        sides = [read_split(folder, f"{split}.{side}", *about) for side in SIDES]
        splits[split] = TokenizedPairs(*sides, bytes_N)
    return PreparedPairs(corpus.name, used, splits, manifest["dropped"], manifest["own"], lost)


def _build(folder: Path, corpus: ParallelCorpus, config: TokenizerConfig | AnyTokenizer) -> None:
    used, dropped, lost = {}, {}, {}
    for split, pairs in corpus.splits.items():
        used[split], dropped[split] = usable_pairs(pairs, split)
    extra = corpus.splits["train"][len(corpus.splits["train"]) - corpus.extra :] if corpus.extra else []
    own = len(used["train"]) - len(usable_pairs(extra, "train")[0])
    both = chain.from_iterable((as_sentence(pair.source), as_sentence(pair.target)) for pair in used["train"])
    tokenizer = tokenizer_for(config, both)
    for split, pairs in used.items():
        for side in SIDES:
            texts = (as_sentence(getattr(pair, side)) for pair in pairs)
            given_back_N, total = write_split(folder, f"{split}.{side}", texts, tokenizer)
        # Those of the targets, which come last.
        np.maximum(given_back_N - 1, 0).astype("<i8").tofile(folder / f"{split}.bytes")
        lost[split] = total - int(given_back_N.sum())
    write_manifest(folder, tokenizer, {"dropped": dropped, "own": own, "lost": lost})
