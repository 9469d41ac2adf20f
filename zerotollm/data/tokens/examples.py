"""Examples -> tokens, prepared once -> batches in which only what is learned has weight: `tokens.py` for examples.

An example is bos, the tokens of its parts and what ends them, or bos, a text and the number of its label: a label is a
completion of one token, from a vocabulary of its own. A batch is a dict of arrays, R examples of at most W tokens:

inputs    int32   [R, W]  the example without its last token; pad on the right
targets   int32   [R, W]  the example without its first token; 0 where that is not learned
weights   float32 [R, W]  1 where the prediction counts

How examples of like length go into batches, `batch = dataset[step]`, is that of `pair_batches.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from zerotollm.data.batches.windows import Batch
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.conversations import Sentence
from zerotollm.data.sources.examples import Example, Examples, open_examples
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, SpecialIds, byte_lengths, load_tokenizer
from zerotollm.data.tokens.text import (
    TOKENIZER,
    given_back,
    mapped,
    open_folder,
    settings,
    token_folder,
    token_type,
    tokenizer_for,
    write_manifest,
)

FORMAT = 2
"""To be raised with every change to what is made of examples, besides those of `tokens.py`."""
GROUP = 4096
"""Examples tokenized at once."""


@dataclass(frozen=True)
class TokenizedExamples:
    """The examples of a split, one after the other."""

    tokens_N: np.ndarray
    """ids, mapped from disk"""
    learned_N: np.ndarray
    """uint8: 1 where the token is to be predicted"""
    starts_E: np.ndarray
    """int64: where in tokens_N the bos of each example is"""
    bytes_E: np.ndarray
    """int64: what each example's learned text has in UTF-8 and its tokens give back, without the space that
    `as_sentence` puts before a text; 1 for a label"""
    special: SpecialIds
    longest: int = 0
    """a text that is labelled is cut to so many tokens; 0: never, and neither is any other"""

    def __len__(self) -> int:
        return len(self.starts_E)

    @cached_property
    def _whole_lengths(self) -> np.ndarray:
        return np.diff(np.append(self.starts_E, len(self.tokens_N))) - 1

    @cached_property
    def side_lengths(self) -> np.ndarray:
        """Tokens of each example's inputs; int64 [examples, 1]."""
        lengths_E = self._whole_lengths
        return (np.minimum(lengths_E, self.longest) if self.longest else lengths_E)[:, None]

    @cached_property
    def num_cut(self) -> tuple[int, int]:
        """Examples that are cut, and their tokens that are cut off."""
        over_E = self._whole_lengths - self.side_lengths[:, 0]
        return int((over_E > 0).sum()), int(over_E.sum())

    @cached_property
    def num_learned(self) -> np.ndarray:
        """Tokens of each example that are to be predicted; int64."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(self.learned_N, self.starts_E, dtype=np.int64)

    def no_longer_than(self, length: int) -> np.ndarray:
        """Numbers of the examples with at most so many input tokens."""
        return np.flatnonzero(self.side_lengths[:, 0] <= length)


def example_batch(examples: TokenizedExamples, numbers: np.ndarray, rows: int, width: int) -> Batch:
    """The examples of these numbers, and below them rows of padding up to `rows`."""
    start_R, length_R = examples.starts_E[numbers], examples.side_lengths[numbers, 0]
    last_R = np.append(examples.starts_E[1:], len(examples.tokens_N))[numbers] - 1
    place_W = np.arange(width)
    inside_RW = place_W < length_R[:, None]
    # After the last input comes the last token, also where a text was cut.
    next_RW = np.where(place_W == length_R[:, None] - 1, last_R[:, None], start_R[:, None] + place_W + 1)
    inputs_RW = np.full((rows, width), examples.special.pad, np.int32)
    targets_RW, weights_RW = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.float32)
    tokens_RW = examples.tokens_N.take(start_R[:, None] + place_W, mode="clip")
    inputs_RW[: len(numbers)] = np.where(inside_RW, tokens_RW, examples.special.pad)
    learned_RW = inside_RW & (examples.learned_N.take(next_RW, mode="clip") > 0)
    targets_RW[: len(numbers)] = np.where(learned_RW, examples.tokens_N.take(next_RW, mode="clip"), 0)
    weights_RW[: len(numbers)] = learned_RW
    return {"inputs": inputs_RW, "targets": targets_RW, "weights": weights_RW}


@dataclass(frozen=True)
class PreparedExamples:
    """All that training needs of a corpus of examples."""

    corpus: str
    tokenizer: AnyTokenizer
    splits: dict[str, TokenizedExamples]
    labels: tuple[str, ...]
    dropped: dict[str, dict[str, int]]
    """of each split: examples left out, by reason"""
    lost: dict[str, int]
    """of each split: UTF-8 bytes of what is learned that the tokens do not give back"""


def prepare_examples(
    data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, objective: str
) -> PreparedExamples:
    """The tokens of `data.corpus`, made by a tokenizer that was trained on all parts of its training split, or given.

    Raises UsageError as `open_examples` does and where the vocabulary does not suit the text, RunError where the data
    directory cannot be written.
    """
    examples = open_examples(data, objective)
    described = ["examples", FORMAT, objective, examples.fingerprint, settings(tokenizer)]
    folder = token_folder(data, examples.name, described)
    manifest = open_folder(folder, lambda temporary: _build(temporary, examples, tokenizer))
    used = load_tokenizer(folder / TOKENIZER)
    splits = {
        split: TokenizedExamples(
            mapped(folder / f"{split}.tokens", manifest["dtype"]),
            mapped(folder / f"{split}.learned", "u1"),
            mapped(folder / f"{split}.starts", "<i8"),
            mapped(folder / f"{split}.bytes", "<i8"),
            SpecialIds.of(used),
            data.context if examples.labels else 0,
        )
        for split in examples.splits
    }
    dropped, lost = manifest["dropped"], manifest["lost"]
    return PreparedExamples(examples.name, used, splits, examples.labels, dropped, lost)


def _build(folder: Path, examples: Examples, config: TokenizerConfig | AnyTokenizer) -> None:
    tokenizer = tokenizer_for(
        config, (part.text for example in examples.splits["train"] for part in example.parts)
    )
    lost = {
        split: _write(folder, split, rows, examples.labels, tokenizer)
        for split, rows in examples.splits.items()
    }
    dropped = examples.dropped or {split: {} for split in examples.splits}
    write_manifest(folder, tokenizer, {"dropped": dropped, "lost": lost})


def _write(
    folder: Path, split: str, rows: Iterable[Example], labels: tuple[str, ...], tokenizer: AnyTokenizer
) -> int:
    """Returns the UTF-8 bytes of what is learned that the tokens do not give back."""
    numbers = {label: number for number, label in enumerate(labels)}
    position, dtype, bytes_V, lost = 0, token_type(tokenizer), byte_lengths(tokenizer), 0
    files = {
        name: (folder / f"{split}.{name}").open("wb") for name in ("tokens", "learned", "starts", "bytes")
    }
    for group in _groups(rows):
        encoded = iter(tokenizer.encode_batch([part.text for row in group for part in row.parts]))
        for row in group:
            # A text and whether it is learned, piece by piece.
            pieces = [(np.array([tokenizer.bos_id]), False)]
            num_bytes = 1 if labels else 0
            for part in row.parts:
                ids_N = next(encoded)
                pieces.append((ids_N, part.learned))
                if part.ends:
                    pieces.append((np.array([tokenizer.stop_id]), part.learned))
                if part.learned:
                    kept = int(given_back([part.text], [ids_N], bytes_V)[0])
                    num_bytes += kept - isinstance(part, Sentence)
                    lost += len(part.text.encode()) - kept
            if labels:
                pieces.append((np.array([numbers[row.label]]), True))
            ids_N = np.concatenate([ids for ids, _ in pieces])
            learned_N = np.concatenate([np.full(len(ids), learned, np.uint8) for ids, learned in pieces])
            files["tokens"].write(ids_N.astype(dtype).tobytes())
            files["learned"].write(learned_N.tobytes())
            files["starts"].write(np.array([position], "<i8").tobytes())
            files["bytes"].write(np.array([num_bytes], "<i8").tobytes())
            position += len(ids_N)
    for file in files.values():
        file.close()
    return lost


def _groups(rows: Iterable[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    for row in rows:
        group.append(row)
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group
