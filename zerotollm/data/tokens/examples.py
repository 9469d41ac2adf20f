"""The tokens of texts of which only a part is learned.

An example is bos, the tokens of its parts and their stop tokens; or bos, a text and the number of its label. A label is
thus a completion of one token, from a vocabulary of its own.
"""

import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.lazy_sequence import in_groups
from zerotollm.data.sources.conversations import Sentence
from zerotollm.data.sources.examples import Example, open_examples
from zerotollm.data.tokens.cache import Counts, Prepared, open_cache, token_folder, token_type
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, SpecialIds, byte_lengths, tokenizer_key
from zerotollm.data.tokens.text import decoded_bytes

FORMAT = 2  # raise it when tokens change for another reason than `tokens.text.FORMAT`
GROUP = 4096  # examples tokenized at once


@dataclass(frozen=True)
class TokenizedExamples:
    """The examples of a split as one row of tokens."""

    tokens_N: np.ndarray  # ids, mapped from disk
    learned_N: np.ndarray  # uint8: 1 for a token to be predicted
    starts_E: np.ndarray  # int64: position in tokens_N of each example's bos
    num_bytes: np.ndarray
    """int64 [examples]: UTF-8 bytes of learned text that decoding returns, without the space of `as_sentence`; 1 for a
    label"""
    special: SpecialIds
    max_length: int = 0  # most input tokens of a text to classify, the rest is cut off; 0: no limit

    @cached_property
    def _full_lengths(self) -> np.ndarray:
        return np.diff(np.append(self.starts_E, len(self.tokens_N))) - 1

    @cached_property
    def side_lengths(self) -> np.ndarray:
        """Input tokens of each example; int64 [examples, 1]."""
        lengths_E = self._full_lengths
        return (np.minimum(lengths_E, self.max_length) if self.max_length else lengths_E)[:, None]

    @cached_property
    def num_cut(self) -> tuple[int, int]:
        """Examples that are cut, and the tokens cut off."""
        excess_E = self._full_lengths - self.side_lengths[:, 0]
        return int((excess_E > 0).sum()), int(excess_E.sum())

    @cached_property
    def num_predicted(self) -> np.ndarray:
        """Tokens to predict in each example; int64 [examples]."""
        if not len(self.starts_E):
            return np.zeros(0, np.int64)
        return np.add.reduceat(self.learned_N, self.starts_E, dtype=np.int64)

    @cached_property
    def fingerprint(self) -> list[int]:
        """Numbers that change with the text; of a long one the first 32 million tokens are read."""
        return [len(self.tokens_N), len(self.starts_E), zlib.crc32(self.tokens_N[: 2**25].data)]


def prepare_examples(
    data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, objective: str
) -> Prepared[TokenizedExamples]:
    """Return the tokens of `data.corpus`, by a given tokenizer or one trained on it; raises as `prepare`."""
    examples = open_examples(data, objective)
    labels = examples.labels

    def write(folder: Path, trained: AnyTokenizer) -> Counts:
        counts = Counts(dropped={split: dict(examples.dropped.get(split, {})) for split in examples.splits})
        for split, rows in examples.splits.items():
            counts.lost[split] = _write_split(folder, split, rows, labels, trained)
        return counts

    key = ["examples", FORMAT, objective, examples.fingerprint, tokenizer_key(tokenizer)]
    cache = open_cache(
        token_folder(data, examples.name, key),
        tokenizer,
        lambda: (part.text for example in examples.splits["train"] for part in example.parts),
        write,
    )
    splits = {
        split: TokenizedExamples(
            cache.tokens(split),
            cache.array(f"{split}.learned", "u1"),
            cache.array(f"{split}.starts"),
            cache.array(f"{split}.bytes"),
            cache.special,
            data.context if labels else 0,
        )
        for split in examples.splits
    }
    return Prepared(examples.name, cache.tokenizer, splits, cache.counts, labels)


def _write_split(
    folder: Path, split: str, examples: Iterable[Example], labels: tuple[str, ...], tokenizer: AnyTokenizer
) -> int:
    """Write the arrays of a split. Return the UTF-8 bytes of learned text that decoding does not return."""
    bos, stop = np.array([tokenizer.bos_id]), np.array([tokenizer.stop_id])
    dtype, bytes_V, position, lost = token_type(tokenizer), byte_lengths(tokenizer), 0, 0
    with ExitStack() as stack:
        tokens, learned, starts, sizes = (
            stack.enter_context((folder / f"{split}.{name}").open("wb"))
            for name in ("tokens", "learned", "starts", "bytes")
        )
        for group in in_groups(examples, lambda example: 1, GROUP):
            texts = [part.text for example in group for part in example.parts]
            ids = tokenizer.encode_batch(texts)
            encoded = zip(texts, ids, decoded_bytes(texts, ids, bytes_V).tolist(), strict=True)
            for example in group:
                pieces, flags = [bos], [False]  # the ids of each piece, and whether they are learned
                num_bytes = 1 if labels else 0
                for part, (text, ids_N, decoded) in zip(
                    example.parts, islice(encoded, len(example.parts)), strict=True
                ):
                    pieces += [ids_N, stop] if part.ends else [ids_N]
                    flags += [part.learned] * (1 + part.ends)
                    if part.learned:
                        num_bytes += decoded - isinstance(part, Sentence)
                        lost += len(text.encode()) - decoded
                if labels:
                    pieces.append(np.array([labels.index(example.label)]))
                    flags.append(True)
                example_N = np.concatenate(pieces)
                tokens.write(example_N.astype(dtype).tobytes())
                learned.write(np.repeat(flags, [len(piece) for piece in pieces]).astype("u1").tobytes())
                starts.write(np.array([position], "<i8").tobytes())
                sizes.write(np.array([num_bytes], "<i8").tobytes())
                position += len(example_N)
    return lost
