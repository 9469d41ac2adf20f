"""Text to token ids and back without loss: SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226).

A token is a run of bytes, and a text is decoded by joining the bytes of its tokens; so text can be shown as
it is generated. How text is cut: spaces stand at the start of a token (" the"), no token spans two words, a
line break is a token, digits stand alone, and a character that is not in the vocabulary becomes one token for
each byte of its UTF-8 form (`byte_fallback`). Nothing is added or removed: with normalization "identity"
every text comes back exactly, with "nfc" or "nfkc" in that Unicode normal form. Without `byte_fallback`
characters that are not in the vocabulary are lost: a run of them becomes one unk, decoded as U+FFFD. Bits per byte
are those of the bytes that come back (`byte_lengths`).

SentencePiece writes a space as U+2581 and cannot tell the two apart. Here U+2581 in a text is never in the
vocabulary, and neither are U+2585 and NUL, which SentencePiece's training needs for itself.
"""

import logging
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.pretrained import PretrainedTokenizer, refuse_surrogates
from zerotollm.errors import RunError, UsageError
from zerotollm.host.atomic_files import write_atomically

SAMPLE_CHARACTERS = 16_000_000
"""A tokenizer learns from at most this many characters, spread evenly over the training text."""
CHUNK = 512
"""Characters encoded at once, at least: BPE slows down on longer texts, and unigram's sums lose precision."""
SENTENCE = 4000
"""Characters in a training sentence, at most."""
UNBROKEN = 64
"""Characters; unigram goes through all the ways to cut a word, and words longer than this take longest."""
SLOW = 500_000
"""Characters in such words that take long enough to say so."""
SCORE_STEPS = 64
"""Scores of unigram are multiples of 1 / so many: their sums are exact, so that every program finds the same best one.
It changes a probability by at most 0.8 %."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
SPECIAL_PIECES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
"""In the order of their ids, 0 to 3."""

# No token spans these places: cut there, a text gets the tokens it would get whole.
_BETWEEN_WORDS = re.compile(r"(?<=\n)|(?<=[^ ])(?= )")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
# Training learns nothing from text that looks like a special piece. It does not look so without its "<".
_LIKE_A_SPECIAL_PIECE = re.compile("<(?=(?:pad|s|/s|unk|0x[0-9A-F]{2})>)")


@dataclass(frozen=True, repr=False)
class Tokenizer:
    """A trained SentencePiece model; two are equal if their bytes are. See `train_tokenizer`."""

    model: bytes
    """as SentencePiece writes it and any program that uses SentencePiece reads it"""

    pad_id: ClassVar[int] = 0
    bos_id: ClassVar[int] = 1
    eos_id: ClassVar[int] = 2
    unk_id: ClassVar[int] = 3
    stop_id: ClassVar[int] = 1
    """what a model writes after a text: the bos of the next"""

    @cached_property
    def vocab_size(self) -> int:
        """Tokens, the special ones and the bytes included; ids are 0 to vocab_size - 1."""
        return len(self._proto.pieces)

    @property
    def kind(self) -> str:
        """bpe, unigram or char."""
        spec = self._proto.trainer_spec
        return spec.ModelType.Name(spec.model_type).lower()

    @property
    def normalization(self) -> str:
        """What is done to a text before it is encoded: identity, nfc or nfkc."""
        return self._proto.normalizer_spec.name

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [N], without bos. Raises UsageError for half of a surrogate pair."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of every text, on all cores."""
        normalization, chunks, ends = self.normalization, [], [0]
        by_line = self.kind == "unigram"
        for text in texts:
            normalized = _normalize(text, normalization)
            # A line end has a score that is no multiple of 1 / SCORE_STEPS: no sum must go on behind it.
            parts = (_LINES.findall(normalized) or [""]) if by_line else [normalized]
            for part in parts:
                chunks += _chunks(part)
            ends.append(len(chunks))
        try:
            ids = self._processor.encode(chunks, out_type="numpy", num_threads=-1)
        except (TypeError, RuntimeError):  # which do not say what is wrong
            refuse_surrogates(texts)
            raise
        if SPACE in chunks:
            ids = [
                self._space_ids if chunk == SPACE else ids_N for chunk, ids_N in zip(chunks, ids, strict=True)
            ]
        return [np.concatenate(ids[start:end]) for start, end in pairwise(ends)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids. Special tokens have none; bytes that are not UTF-8 become U+FFFD."""
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return b"".join([self._meanings[i] for i in ids]).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, in UTF-8: perhaps a part of a character; nothing for a special one."""
        return self._meanings[token_id]

    def piece(self, token_id: int) -> str:
        """A token as SentencePiece writes it: `▁the` for " the", `<0xE2>` for a byte, `<s>` for bos."""
        return self._proto.pieces[token_id].piece

    def save(self, path: str | Path) -> None:
        """Writes the model, whole or not at all. Raises RunError where the disk is full or read-only."""
        write_atomically(Path(path), self.model)

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size:,} tokens, normalization {self.normalization})"

    @cached_property
    def _proto(self):
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        return ModelProto.FromString(self.model)

    @cached_property
    def _processor(self):
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.model)

    @cached_property
    def _meanings(self) -> list[bytes]:
        def meaning(piece) -> bytes:
            if piece.type == piece.BYTE:
                return bytes.fromhex(piece.piece[3:5])  # <0xE2>
            if piece.type == piece.CONTROL:
                return b""
            if piece.type == piece.UNKNOWN:
                return "\ufffd".encode()
            return piece.piece.replace(SPACE, " ").encode()

        return [meaning(piece) for piece in self._proto.pieces]

    @cached_property
    def _space_ids(self) -> np.ndarray:
        """The ids of U+2581 in a text."""
        bytes_N = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        known = self._proto.trainer_spec.byte_fallback
        return np.array(bytes_N if known else [self.unk_id], np.int32)


AnyTokenizer = Tokenizer | PretrainedTokenizer


def byte_lengths(tokenizer: AnyTokenizer) -> np.ndarray:
    """UTF-8 bytes of the text that each token stands for, int64 [V]; 0 for special tokens and for unk, whose text is
    lost."""
    lengths_V = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], np.int64)
    if tokenizer.unk_id is not None:
        lengths_V[tokenizer.unk_id] = 0
    return lengths_V


def may_lose(tokenizer: TokenizerConfig | AnyTokenizer) -> bool:
    """Whether there may be texts that decoding does not give back. An imported tokenizer does not say."""
    if isinstance(tokenizer, TokenizerConfig):
        return not tokenizer.byte_fallback or tokenizer.normalization != "identity"
    if isinstance(tokenizer, PretrainedTokenizer):
        return True
    return not tokenizer._proto.trainer_spec.byte_fallback or tokenizer.normalization != "identity"


class SpecialIds(NamedTuple):
    """Of tokens that are no text."""

    pad: int = Tokenizer.pad_id
    bos: int = Tokenizer.bos_id
    eos: int = Tokenizer.eos_id

    @classmethod
    def of(cls, tokenizer: AnyTokenizer) -> "SpecialIds":
        return cls(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)


OWN_IDS = SpecialIds()
"""Of every tokenizer that is trained here."""


def load_tokenizer(path: str | Path) -> AnyTokenizer:
    """The tokenizer that `save` wrote. Raises RunError where the file is missing or damaged."""
    from google.protobuf.message import DecodeError

    try:
        model = Path(path).read_bytes()
        if model.startswith(b"{"):
            return _check_pretrained(PretrainedTokenizer(model), path)
        tokenizer = Tokenizer(model)
        spec = tokenizer._proto.trainer_spec
        pieces = [tokenizer.piece(i) for i in range(min(4, tokenizer.vocab_size))]
    except OSError as error:
        raise RunError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    except DecodeError as error:
        raise RunError(f"the tokenizer {path} is damaged: delete it and run again") from error
    # A file cut between two of its parts is still a message; the last part says how text is normalized.
    if spec.vocab_size != tokenizer.vocab_size or not tokenizer.normalization:
        raise RunError(f"the tokenizer {path} is damaged: delete it and run again")
    try:
        tokenizer._processor  # noqa: B018
    except (RuntimeError, ValueError) as error:  # the second where its words are not UTF-8
        raise RunError(f"the tokenizer {path} is damaged: delete it and run again") from error
    if pieces != list(SPECIAL_PIECES.values()):
        names = ", ".join(map(repr, pieces))
        raise RunError(f"{path} is no tokenizer of this project: its first tokens are {names}")
    return tokenizer


def _check_pretrained(tokenizer: PretrainedTokenizer, path: str | Path) -> PretrainedTokenizer:
    try:
        tokenizer._parts["tokenizer"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"the tokenizer {path} is damaged: delete it and run again") from error
    return tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Learns a vocabulary from texts. The same texts and settings give the same bytes on any machine.

    Texts are read once, and `SAMPLE_CHARACTERS` of them are kept in memory. With kind "char" the vocabulary
    holds every character, or the most frequent where `vocab_size` is too small for all. With `byte_fallback`
    the other kinds hold every character if that fills at most a quarter of the vocabulary, else those that
    make up 99.95 % of the text, in at most half of it; without, they hold every character.

    Raises UsageError where there is no text, or where `vocab_size` is larger or smaller than the text allows.
    """
    from sentencepiece import SentencePieceTrainer
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    if config.kind == "pretrained":
        raise UsageError(
            "tokenizer.kind pretrained is not made from a text but comes with a model: give train.start_from the run "
            "that was imported, or take another kind"
        )
    sentences = _sample(
        sentence for text in texts for sentence in _sentences(_normalize(text, config.normalization))
    )
    if not sentences:
        raise UsageError("the training split holds no text, so there is nothing to make a tokenizer from")
    sentences, rare = _without_rare(sentences, config)
    unbroken = sum(len(word) for text in sentences for word in text.split(" ") if len(word) > UNBROKEN)
    if config.kind == "unigram" and unbroken > SLOW:
        logging.getLogger(__name__).warning(
            f"learning a unigram vocabulary from {unbroken:,} characters without spaces, which may take minutes; "
            "--tokenizer.kind bpe takes seconds"
        )
    model = BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,  # a vocabulary that is too large is answered below
            character_coverage=1.0,
            byte_fallback=config.byte_fallback,
            user_defined_symbols=["\n"],
            required_chars=SPACE,  # else a text without spaces would leave them to the bytes of U+2581
            **{f"{name}_id": number for number, name in enumerate(SPECIAL_PIECES)},
            **{f"{name}_piece": piece for name, piece in SPECIAL_PIECES.items()},
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=4 * SENTENCE,  # bytes; longer ones would be dropped without a word
            num_threads=8,  # on any machine: it decides how unigram's sums are rounded
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RunError(f"SentencePiece could not learn a {config.kind} vocabulary: {error}") from error
    proto = ModelProto.FromString(model.getvalue())
    if config.kind == "unigram":
        for piece in proto.pieces:
            piece.score = round(piece.score * SCORE_STEPS) / SCORE_STEPS
    least_score = min(piece.score for piece in proto.pieces)
    for rank, character in enumerate(rare[: config.vocab_size - len(proto.pieces)]):
        proto.pieces.add(piece=character, score=least_score - 1 - rank)
    if len(proto.pieces) < config.vocab_size and config.kind != "char":
        raise UsageError(
            f"tokenizer.vocab_size {config.vocab_size} is larger than this text allows: "
            f"take at most {len(proto.pieces)}, or more text"
        )
    proto.trainer_spec.vocab_size = len(proto.pieces)
    # SentencePiece gets its text normalized, so to it this is but a name.
    proto.normalizer_spec.name = config.normalization
    return Tokenizer(proto.SerializeToString(deterministic=True))


def _normalize(text: str, normalization: str) -> str:
    return text if normalization == "identity" else unicodedata.normalize(normalization.upper(), text)


def _cut(text: str, size: int) -> Iterator[str]:
    """The text in parts of at least `size` characters, each but the last ending between two words."""
    start = 0
    while start < len(text):
        match = _BETWEEN_WORDS.search(text, start + size)
        end = match.start() if match else len(text)
        yield text[start:end]
        start = end


def _chunks(text: str) -> list[str]:
    """The text in parts that are encoded on their own; each U+2581 is one."""
    if SPACE in text:
        return [chunk for part in re.split(f"({SPACE})", text) for chunk in _cut(part, CHUNK)]
    return [text] if len(text) <= CHUNK else list(_cut(text, CHUNK))


def _sentences(text: str) -> Iterator[str]:
    """What SentencePiece learns from, which begins and ends between words wherever it can."""
    text = _LIKE_A_SPECIAL_PIECE.sub("<\n", text)
    for character in f"\0{SPACE}\u2585":  # it stops at the first, misreads the second, drops for the third
        text = text.replace(character, "\n")
    for line in text.split("\n"):
        for part in _cut(line, SENTENCE // 2):
            for start in range(0, len(part), SENTENCE):
                yield part[start : start + SENTENCE]


def _sample(sentences: Iterable[str]) -> list[str]:
    """Every sentence, or every second, fourth, eighth, ..., so that `SAMPLE_CHARACTERS` are not exceeded."""
    kept, size, stride = [], 0, 1
    for number, sentence in enumerate(sentences):
        if number % stride == 0:
            kept.append(sentence)
            size += len(sentence)
            if size > SAMPLE_CHARACTERS and len(kept) > 1:
                kept, stride = kept[::2], 2 * stride
                size = sum(map(len, kept))
    return kept


def _without_rare(sentences: list[str], config: TokenizerConfig) -> tuple[list[str], list[str]]:
    """The sentences, cut at characters that are too rare for a token; and these, the most frequent first.

    Raises UsageError where the vocabulary is too small for what it must hold.
    """
    alphabet = set().union(*sentences) - {" "}
    fixed = len(SPECIAL_PIECES) + 256 * config.byte_fallback + len(" \n")
    room = config.vocab_size - fixed
    must_fit = config.kind != "char" and not config.byte_fallback
    if room < 0 or (must_fit and room < len(alphabet)):
        characters = f" for the {len(alphabet)} characters of this text, or byte_fallback" if must_fit else ""
        raise UsageError(
            f"tokenizer.vocab_size {config.vocab_size} is too small: "
            f"take at least {fixed + len(alphabet) * must_fit}{characters}"
        )
    if must_fit or len(alphabet) <= (room if config.kind == "char" else room // 4):
        return sentences, []
    count = Counter(chain.from_iterable(sentences))
    del count[" "]
    ranked = sorted(alphabet, key=lambda character: (-count[character], character))
    if config.kind == "char":
        kept = room
    else:
        covered = list(accumulate(count[character] for character in ranked))
        kept = min(bisect_left(covered, 0.9995 * covered[-1]) + 1, room // 2)
    cut = dict.fromkeys(map(ord, ranked[kept:]), "\n")
    parts = [part for sentence in sentences for part in sentence.translate(cut).split("\n") if part]
    return parts or [" "], ranked[kept:]
