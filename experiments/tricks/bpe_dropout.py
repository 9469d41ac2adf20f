"""BPE-dropout (arXiv:1910.13267): each time a training word is read, some of its merges are skipped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from sentencepiece import SentencePieceProcessor

from zerotollm import components
from zerotollm.data.batches.windows import Batch
from zerotollm.data.feed import Feed
from zerotollm.data.lazy_sequence import LazySequence
from zerotollm.data.tokens.byte_tokenizer import SPACE
from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.experiment import Experiment

RATE = 0.1
"""probability that a merge is skipped, at each step of a word's segmentation (the paper's choice)"""


@dataclass(frozen=True)
class Merges:
    """A BPE vocabulary: which two neighbours merge, and which first."""

    ids: dict[str, int]
    """of normal tokens; no special token, no byte"""
    scores_V: np.ndarray
    """the higher, the earlier a token is made"""
    pieces: tuple[str, ...]
    bos: int

    def segment(self, word: str, rate: float, random: np.random.Generator) -> list[int]:
        """Return the tokens of a word: merged pair by pair, each candidate skipped with probability `rate`.

        Algorithm 1: in every round the candidates that are not skipped compete, and the best of them is merged. It ends
        when none is left. With rate 0 this is plain BPE.
        """
        symbols = list(word)
        while True:
            pairs = (self.ids.get(a + b) for a, b in pairwise(symbols))
            candidates = [(i, pair) for i, pair in enumerate(pairs) if pair is not None]
            if rate and candidates:
                kept = random.random(len(candidates)) >= rate
                candidates = [candidate for candidate, keep in zip(candidates, kept, strict=True) if keep]
            if not candidates:
                return [self.ids[symbol] for symbol in symbols]
            first, _ = max(candidates, key=lambda candidate: (self.scores_V[candidate[1]], -candidate[0]))
            symbols[first : first + 2] = [symbols[first] + symbols[first + 1]]

    def again(self, tokens_N: np.ndarray, rate: float, random: np.random.Generator) -> list[int]:
        """Return the tokens with their words segmented again. Special tokens, bytes and their like stay."""
        new: list[int] = []
        word = ""
        for token in tokens_N.tolist():
            piece = self.pieces[token]
            is_normal = piece in self.ids
            if word and (not is_normal or piece.startswith(SPACE)):
                new += self.segment(word, rate, random)
                word = ""
            if is_normal:
                word += piece
            else:
                new.append(token)
        return new + (self.segment(word, rate, random) if word else [])


def merges_of(tokenizer: Tokenizer) -> Merges:
    """Return the merges of a SentencePiece BPE model whose characters are all tokens."""
    processor = SentencePieceProcessor(model_proto=tokenizer.model)
    pieces = tuple(processor.id_to_piece(list(range(tokenizer.vocab_size))))
    special = [
        processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i) for i in range(len(pieces))
    ]
    ids = {piece: i for i, piece in enumerate(pieces) if not special[i]}
    known = {piece: i for piece, i in ids.items() if set(piece) <= ids.keys()}
    return Merges(known, np.array(processor.get_score(list(range(len(pieces))))), pieces, tokenizer.bos_id)


def dropped(batch: Batch, merges: Merges, rate: float, seed: list[int]) -> Batch:
    """Return the batch with its words segmented again: longer windows, cut at their old length."""
    inputs_BT = batch["inputs"]
    windows_BW = np.concatenate([inputs_BT, batch["targets"][:, -1:]], axis=1)
    for row, window_W in enumerate(windows_BW):
        random = np.random.default_rng([*seed, row])
        windows_BW[row] = merges.again(window_W, rate, random)[: len(window_W)]
    bos_BT = windows_BW[:, :-1] == merges.bos
    segments_BT = np.cumsum(bos_BT, axis=1, dtype=np.int32) + ~bos_BT[:, :1]
    return {
        "inputs": np.ascontiguousarray(windows_BW[:, :-1]),
        "targets": np.ascontiguousarray(windows_BW[:, 1:]),
        "weights": batch["weights"],
        "segments": segments_BT,
    }


def dataset(experiment: Experiment) -> Feed:
    """Return the built-in batches, whose training windows are segmented again. Validation stays as it is."""
    feed = components.dataset(experiment)
    assert isinstance(feed.tokenizer, Tokenizer)
    merges = merges_of(feed.tokenizer)

    def training(*, seed: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]:
        whole = feed.training(seed=seed, process_index=process_index, process_count=process_count)
        return LazySequence(
            len(whole), lambda step: dropped(whole[step], merges, RATE, [seed, step, process_index])
        )

    return replace(feed, training=training)
