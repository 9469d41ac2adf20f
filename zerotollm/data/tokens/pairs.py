"""The tokens of a parallel corpus: one tokenizer for both sides, and a row of tokens for each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.pairs import as_sentence, usable_pairs
from zerotollm.data.sources.parallel import open_parallel
from zerotollm.data.tokens.cache import Counts, Prepared, open_cache, token_folder
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, tokenizer_key
from zerotollm.data.tokens.text import TokenizedSplit, read_split, write_split

FORMAT = 2  # raise it when tokens change for another reason than `tokens.text.FORMAT`


@dataclass(frozen=True)
class TokenizedPairs:
    """The pairs of a split: text i of `sources` is translated by text i of `targets`."""

    sources: TokenizedSplit
    targets: TokenizedSplit
    num_bytes: np.ndarray
    """int64 [pairs]: UTF-8 bytes of each target that decoding returns, without the space put before it"""

    @cached_property
    def side_lengths(self) -> np.ndarray:
        """Tokens of source and target, each with its eos; int64 [pairs, 2]."""
        # A stored text begins with bos. A batch removes it and appends eos, which leaves the length unchanged.
        sides = [(side.document_starts_D, len(side.tokens_N)) for side in (self.sources, self.targets)]
        return np.stack([np.diff(np.append(starts_D, end)) for starts_D, end in sides], axis=-1)

    @property
    def num_predicted(self) -> np.ndarray:
        """Tokens to predict in each pair; int64 [pairs]."""
        return self.side_lengths[:, 1]

    @property
    def fingerprint(self) -> list[int]:
        """Numbers that change with the text."""
        return [*self.sources.fingerprint, *self.targets.fingerprint]


def prepare_pairs(data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer) -> Prepared[TokenizedPairs]:
    """Return the tokens of `data.corpus`, by a given tokenizer or one trained on both sides; raises as `prepare`."""
    corpus = open_parallel(data)

    def texts() -> Iterator[str]:
        for pair in usable_pairs(corpus.splits["train"], "train")[0]:
            yield as_sentence(pair.source)
            yield as_sentence(pair.target)

    def write(folder: Path, trained: AnyTokenizer) -> Counts:
        counts = Counts()
        for split, pairs in corpus.splits.items():
            used, counts.dropped[split] = usable_pairs(pairs, split)
            if split == "train":
                extra = pairs[len(pairs) - corpus.extra :]
                counts.own = len(used) - len(usable_pairs(extra, split)[0])
            write_split(folder, f"{split}.source", (as_sentence(pair.source) for pair in used), trained)
            targets = (as_sentence(pair.target) for pair in used)
            decoded_N, total = write_split(folder, f"{split}.target", targets, trained)
            np.maximum(decoded_N - 1, 0).astype("<i8").tofile(folder / f"{split}.bytes")
            counts.lost[split] = total - int(decoded_N.sum())
        return counts

    key = ["pairs", FORMAT, corpus.fingerprint, tokenizer_key(tokenizer)]
    cache = open_cache(token_folder(data, corpus.name, key), tokenizer, texts, write)
    splits = {}
    for split in cache.counts.dropped:
        num_bytes = cache.array(f"{split}.bytes")
        sizes = int(num_bytes.sum()), cache.counts.lost.get(split, 0)
        sources, targets = (read_split(cache, f"{split}.{side}", *sizes) for side in ("source", "target"))
        splits[split] = TokenizedPairs(sources, targets, num_bytes)
    return Prepared(corpus.name, cache.tokenizer, splits, cache.counts)
