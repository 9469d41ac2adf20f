"""The tokens of a text corpus: all documents of a split in one row."""

import shutil
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.lazy_sequence import in_groups
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.documents import Corpus, Document, training_texts
from zerotollm.data.tokens.cache import Counts, Prepared, TokenCache, open_cache, token_folder, token_type
from zerotollm.data.tokens.sentencepiece import (
    OWN_IDS,
    SAMPLE_CHARACTERS,
    AnyTokenizer,
    SpecialIds,
    byte_lengths,
    tokenizer_key,
)
from zerotollm.errors import RunError

FORMAT = 1  # raise this whenever the training of a tokenizer, encoding or the files change
GROUP = 4_000_000  # characters tokenized at once. A large corpus takes a few times this in memory.
SAMPLED = 64  # documents of a split from whose beginnings the size of all tokens is estimated


@dataclass(frozen=True)
class TokenizedSplit:
    """The documents of a split as one row of tokens."""

    tokens_N: np.ndarray
    """ids, mapped from disk: for each document bos, its text, and the ending, see `write_split`. uint16 or uint32"""
    document_starts_D: np.ndarray  # int64: position in tokens_N of each document's bos
    num_bytes: int  # UTF-8 bytes of text that decoding returns, see `decoded_bytes`
    special: SpecialIds = OWN_IDS
    lost_bytes: int = 0  # UTF-8 bytes of text that decoding does not return

    @cached_property
    def fingerprint(self) -> list[int]:
        """Numbers that change with the text; of a long one the first 32 million tokens are read."""
        return [len(self.tokens_N), self.num_bytes + self.lost_bytes, zlib.crc32(self.tokens_N[: 2**25].data)]


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, corpus: Corpus[Document] | None = None
) -> Prepared[TokenizedSplit]:
    """Return the tokens of `data.corpus`, made by a given tokenizer or one trained on the training split alone.

    `corpus` saves opening it twice. Later calls only map the result; damaged tokens are rebuilt. Raises UsageError if
    the corpus is not available or the vocabulary does not suit it, RunError if the data directory cannot be written.
    """
    corpus = corpus or open_corpus(data)

    def write(folder: Path, trained: AnyTokenizer) -> Counts:
        check_disk_space(folder, corpus, trained)
        counts = Counts()
        for split, documents in corpus.splits.items():
            texts = (document.text for document in documents)
            decoded_D, total = write_split(folder, split, texts, trained, ended=True)
            counts.num_bytes[split] = int(decoded_D.sum())
            counts.lost[split] = total - int(decoded_D.sum())
        return counts

    cache = open_cache(
        text_folder(data, corpus, tokenizer),
        tokenizer,
        lambda: training_texts(corpus, SAMPLE_CHARACTERS),
        write,
    )
    counts = cache.counts
    splits = {
        split: read_split(cache, split, num_bytes, counts.lost.get(split, 0))
        for split, num_bytes in counts.num_bytes.items()
    }
    return Prepared(corpus.name, cache.tokenizer, splits, counts)


def text_folder(
    data: DataConfig, corpus: Corpus[Document], tokenizer: TokenizerConfig | AnyTokenizer
) -> Path:
    """Return the folder that `prepare` fills."""
    return token_folder(data, corpus.name, [FORMAT, corpus.fingerprint, tokenizer_key(tokenizer)])


def check_disk_space(
    folder: Path, corpus: Corpus[Document], tokenizer: AnyTokenizer, copies: int = 1
) -> None:
    """Raise RunError, before hours of work, if the tokens will not fit on the disk."""
    needed, free = copies * estimate_bytes(corpus, tokenizer), shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"the tokens of {corpus.name} will take about {_size(needed)} in {folder.parent}, where "
            f"{_size(free)} are free: free space there, or choose another folder with --data.dir or "
            "$ZEROTOLLM_DATA"
        )


def _size(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.2f} MB"


def estimate_bytes(corpus: Corpus[Document], tokenizer: AnyTokenizer) -> int:
    """Return the approximate size of all tokens on disk, extrapolated from documents at even distances."""
    total = 0.0
    for documents in corpus.splits.values():
        sampled = range(0, len(documents), max(1, len(documents) // SAMPLED))
        texts = [documents[index].text for index in sampled]
        beginnings = [text[: GROUP // SAMPLED] for text in texts]
        tokens = sum(map(len, tokenizer.encode_batch(beginnings)))
        share = sum(map(len, beginnings)) / max(1, sum(map(len, texts)))
        if texts:
            total += tokens / max(share, 1e-9) * len(documents) / len(texts) * token_type(tokenizer).itemsize
        total += 8 * len(documents)  # the document starts
    return round(total)


class SplitWriter:
    """Writes the tokens of the texts of a split and where each starts. To be closed."""

    def __init__(self, folder: Path, split: str, tokenizer: AnyTokenizer, *, ended: bool = False):
        """With `ended`, a text ends with the tokenizer's stop token, unless that is the next bos."""
        self.total = 0  # UTF-8 bytes of all texts
        self._decoded, self._bytes_V, self._position = [np.zeros(0, np.int64)], byte_lengths(tokenizer), 0
        self._tokenizer, self._dtype = tokenizer, token_type(tokenizer)
        self._bos = np.array([tokenizer.bos_id], np.int32)
        has_end = ended and tokenizer.stop_id != tokenizer.bos_id
        self._end = np.array([tokenizer.stop_id] if has_end else [], np.int32)
        with ExitStack() as stack:
            files = (
                stack.enter_context((folder / f"{split}.{name}").open("wb")) for name in ("tokens", "starts")
            )
            self._tokens, self._starts = files
            self.close = stack.pop_all().close

    @property
    def decoded(self) -> np.ndarray:
        """The `decoded_bytes` of all texts so far."""
        return np.concatenate(self._decoded)

    def add(self, texts: Sequence[str]) -> None:
        """Write texts, which are tokenized at once. Each begins with bos."""
        ids = self._tokenizer.encode_batch(texts)
        length_D = np.array([len(self._bos) + len(ids_N) + len(self._end) for ids_N in ids], np.int64)
        end_D = self._position + np.cumsum(length_D)
        self._starts.write((end_D - length_D).astype("<i8").tobytes())
        row = np.concatenate([array for ids_N in ids for array in (self._bos, ids_N, self._end)])
        self._tokens.write(row.astype(self._dtype).tobytes())
        self._position = int(end_D[-1])
        self.total += sum(len(text.encode()) for text in texts)
        self._decoded.append(decoded_bytes(texts, ids, self._bytes_V))


def write_split(
    folder: Path, split: str, texts: Iterable[str], tokenizer: AnyTokenizer, *, ended: bool = False
) -> tuple[np.ndarray, int]:
    """Write the tokens of texts and where each starts. Return their `decoded_bytes` and their UTF-8 bytes in total."""
    with closing(SplitWriter(folder, split, tokenizer, ended=ended)) as writer:
        for group in in_groups(texts, len, GROUP):
            writer.add(group)
    return writer.decoded, writer.total


def decoded_bytes(texts: Sequence[str], ids: Sequence[np.ndarray], bytes_V: np.ndarray) -> np.ndarray:
    """Return the UTF-8 bytes of each text that decoding returns, int64 [texts]. `bytes_V` is `byte_lengths`.

    A model predicts these. They are fewer than the text's if characters became unk or normalization shortened them, and
    never more, not even if the tokenizer adds a space before a text.
    """
    pairs = zip(texts, ids, strict=True)
    return np.array([min(len(text.encode()), int(bytes_V[ids_N].sum())) for text, ids_N in pairs], np.int64)


def read_split(cache: TokenCache, split: str, num_bytes: int, lost_bytes: int) -> TokenizedSplit:
    """Return what `write_split` wrote, mapped from disk."""
    starts_D = cache.array(f"{split}.starts")
    return TokenizedSplit(cache.tokens(split), starts_D, num_bytes, cache.special, lost_bytes)
