"""SentencePiece tokenizers (Kudo and Richardson 2018, arXiv:1808.06226): text to token ids and back without loss.

A token is a run of bytes. A space stands at the start of a token (" the"), and no token spans two words. A line break
is a token, and so is each digit. With `byte_fallback`, a character outside the vocabulary becomes one token for each
byte of its UTF-8 form; without, a run of such characters becomes one unk, decoded as U+FFFD.

Decoding returns every text exactly with normalization "identity", and its Unicode normal form with "nfc" or "nfkc".
Bits per byte count only the bytes that decoding returns (`byte_lengths`).

SentencePiece writes a space as U+2581 and cannot tell the two apart. Here U+2581 in a text is never in the
vocabulary. Neither are U+2585 and NUL, which SentencePiece's training reserves.
"""

import hashlib
import logging
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportAttributeAccessIssue]  made when imported

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens import pretrained
from zerotollm.data.tokens.byte_tokenizer import SPACE, ByteTokenizer, check_encodable_as_utf8
from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.types import Json

SAMPLE_CHARACTERS = 16_000_000  # most characters that a tokenizer learns from, spread evenly
CHUNK = 512
"""Least number of characters encoded at once: BPE slows down on longer texts, and unigram's sums lose precision."""
SENTENCE = 4000  # most characters in a training sentence
UNBROKEN = 64
"""Characters. Unigram considers every segmentation of a word, so longer words dominate its training time."""
SLOW = 500_000  # characters in such long words above which unigram training warns that it is slow
SCORE_STEPS = 64
"""Unigram scores are multiples of 1 / SCORE_STEPS: their sums are exact, so every program finds the same best
segmentation. Rounding changes a probability by at most 0.8 %."""
SPECIAL_PIECES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
"""Special tokens in the order of their ids, 0 to 3."""

_FORMS: dict[str, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}
# No token spans these places, so splitting a text there does not change its tokens.
_BETWEEN_WORDS = re.compile(r"(?<=\n)|(?<=[^ ])(?= )")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
# SentencePiece skips text that looks like a special piece. Removing the "<" prevents that.
_LIKE_A_SPECIAL_PIECE = re.compile("<(?=(?:pad|s|/s|unk|0x[0-9A-F]{2})>)")


@dataclass(frozen=True, repr=False)
class Tokenizer(ByteTokenizer):
    """A trained SentencePiece model, in SentencePiece's own file format. See `train_tokenizer`."""

    pad_id: ClassVar[int] = 0
    bos_id: ClassVar[int] = 1
    eos_id: ClassVar[int] = 2
    unk_id: ClassVar[int] = 3
    stop_id: ClassVar[int] = 1  # the token that a model generates after a text: the bos of the next
    stop_ids: ClassVar[tuple[int, ...]] = (1,)  # the tokens that end generation

    @cached_property
    def vocab_size(self) -> int:
        """Number of tokens, special and byte tokens included; ids are 0 to vocab_size - 1."""
        return len(self._proto.pieces)

    @property
    def kind(self) -> str:
        """bpe, unigram or char."""
        spec = self._proto.trainer_spec
        return spec.ModelType.Name(spec.model_type).lower()

    @property
    def normalization(self) -> str:
        """Unicode normalization before encoding: identity, nfc or nfkc."""
        return self._proto.normalizer_spec.name

    @property
    def byte_fallback(self) -> bool:
        """Whether characters outside the vocabulary become their UTF-8 bytes."""
        return self._proto.trainer_spec.byte_fallback

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return `encode` of every text, computed on all cores."""
        normalization, chunks, ends = self.normalization, [], [0]
        by_line = self.kind == "unigram"
        for text in texts:
            text = _normalize(text, normalization)
            # A line end's score is not a multiple of 1 / SCORE_STEPS, so no sum may continue after it.
            for line in (_LINES.findall(text) or [""]) if by_line else [text]:
                chunks += _chunks(line)
            ends.append(len(chunks))
        try:
            ids = self._processor.encode(chunks, out_type="numpy", num_threads=-1)
        except (TypeError, RuntimeError):  # these do not name the cause
            check_encodable_as_utf8(texts)
            raise
        if SPACE in chunks:
            pairs = zip(chunks, ids, strict=True)
            ids = [self._ids_of_u2581 if chunk == SPACE else ids_N for chunk, ids_N in pairs]
        return [np.concatenate(ids[start:end]) for start, end in pairwise(ends)]

    def piece(self, token_id: int) -> str:
        """Return a token as SentencePiece spells it: `▁the` for " the", `<0xE2>` for a byte, `<s>` for bos."""
        return self._proto.pieces[token_id].piece

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size:,} tokens, normalization {self.normalization})"

    @cached_property
    def _proto(self) -> ModelProto:
        return ModelProto.FromString(self.model)

    @cached_property
    def _processor(self) -> SentencePieceProcessor:
        return SentencePieceProcessor(model_proto=self.model)

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        def piece_bytes(piece: ModelProto.SentencePiece) -> bytes:
            if piece.type == piece.BYTE:
                return bytes.fromhex(piece.piece[3:5])  # <0xE2>
            if piece.type == piece.CONTROL:
                return b""
            if piece.type == piece.UNKNOWN:
                return "\ufffd".encode()
            return piece.piece.replace(SPACE, " ").encode()

        return [piece_bytes(piece) for piece in self._proto.pieces]

    @cached_property
    def _ids_of_u2581(self) -> np.ndarray:
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        return np.array(byte_ids if self.byte_fallback else [self.unk_id], np.int32)


AnyTokenizer = Tokenizer | PretrainedTokenizer


def byte_lengths(tokenizer: AnyTokenizer) -> np.ndarray:
    """Return the UTF-8 bytes of text behind each token, int64 [V]; 0 for special tokens and unk."""
    lengths_V = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], np.int64)
    if tokenizer.unk_id is not None:
        lengths_V[tokenizer.unk_id] = 0
    return lengths_V


def may_lose_text(tokenizer: TokenizerConfig | AnyTokenizer) -> bool:
    """Return whether decoding may fail to return some text. Imported tokenizers are assumed to lose text."""
    if isinstance(tokenizer, PretrainedTokenizer):
        return True
    return not tokenizer.byte_fallback or tokenizer.normalization != "identity"


class SpecialIds(NamedTuple):
    """Ids of the special tokens."""

    pad: int = Tokenizer.pad_id
    bos: int = Tokenizer.bos_id
    eos: int = Tokenizer.eos_id

    @classmethod
    def of(cls, tokenizer: AnyTokenizer) -> "SpecialIds":
        return cls(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)


OWN_IDS = SpecialIds()


def load_tokenizer(path: str | Path) -> AnyTokenizer:
    """Return the tokenizer that `save` wrote. Raises RunError if the file is missing or damaged."""
    damaged = RunError(f"the tokenizer {path} is damaged: delete it and run again")
    try:
        model = Path(path).read_bytes()
        if model.startswith(b"{"):
            tokenizer = PretrainedTokenizer(model)
            tokenizer.tokenizer_json  # noqa: B018
            return tokenizer
        tokenizer = Tokenizer(model)
        pieces = [tokenizer.piece(i) for i in range(min(4, tokenizer.vocab_size))]
        # A file cut between two of its fields is still a valid message. The last field holds the normalization.
        if tokenizer._proto.trainer_spec.vocab_size != tokenizer.vocab_size or not tokenizer.normalization:
            raise damaged
        tokenizer._processor  # noqa: B018
    except OSError as error:
        raise RunError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    except (DecodeError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise damaged from error
    if pieces != list(SPECIAL_PIECES.values()):
        raise RunError(
            f"{path} is not a tokenizer of this project: its first tokens are {', '.join(map(repr, pieces))}"
        )
    return tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Train a tokenizer on texts. The same texts and settings give the same bytes on any machine.

    Characters in the vocabulary:

    - kind "char": all, or the most frequent if `vocab_size` is too small for all
    - other kinds with `byte_fallback`: all if they fill at most a quarter of the vocabulary; else the most frequent,
      which make up 99.95 % of the text, in at most half of the vocabulary
    - other kinds without `byte_fallback`: all

    Raises UsageError if there is no text, or `vocab_size` is too large or too small for the text.
    """
    if config.kind == "pretrained":
        raise UsageError(
            "tokenizer.kind pretrained is not trained but comes with an imported model: set train.start_from to the "
            "run of that model, or choose another kind"
        )
    sentences = _sample(
        sentence for text in texts for sentence in _sentences(_normalize(text, config.normalization))
    )
    if not sentences:
        message = "the training split holds no text to train a tokenizer on: choose another data.corpus"
        raise UsageError(message)
    sentences, rare = _remove_rare(sentences, config)
    unbroken = sum(len(word) for text in sentences for word in text.split(" ") if len(word) > UNBROKEN)
    if config.kind == "unigram" and unbroken > SLOW:
        logging.getLogger(__name__).warning(
            f"training a unigram tokenizer on {unbroken:,} characters without spaces may take minutes; "
            "--tokenizer.kind bpe takes seconds"
        )
    model = BytesIO()
    special: Json = {f"{name}_piece": piece for name, piece in SPECIAL_PIECES.items()}
    special |= {f"{name}_id": number for number, name in enumerate(SPECIAL_PIECES)}
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,  # a vocabulary that is too large is reported below
            character_coverage=1.0,
            byte_fallback=config.byte_fallback,
            user_defined_symbols=["\n"],
            required_chars=SPACE,  # else a text without spaces would encode them as the bytes of U+2581
            **special,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=4 * SENTENCE,  # bytes; longer sentences would be dropped silently
            num_threads=8,  # the same on any machine, as it changes how unigram's sums are rounded
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RunError(f"SentencePiece could not train a {config.kind} tokenizer: {error}") from error
    proto = ModelProto.FromString(model.getvalue())
    if config.kind == "unigram":
        for piece in proto.pieces:
            piece.score = round(piece.score * SCORE_STEPS) / SCORE_STEPS
    least_score = min(piece.score for piece in proto.pieces)
    for rank, character in enumerate(rare[: config.vocab_size - len(proto.pieces)]):
        proto.pieces.add(piece=character, score=least_score - 1 - rank)
    if len(proto.pieces) < config.vocab_size and config.kind != "char":
        raise UsageError(
            f"tokenizer.vocab_size {config.vocab_size} is too large for this text: "
            f"take at most {len(proto.pieces)}, or more text"
        )
    proto.trainer_spec.vocab_size = len(proto.pieces)
    # Texts are normalized before SentencePiece reads them; the name is stored for `Tokenizer.normalization`.
    proto.normalizer_spec.name = config.normalization
    return Tokenizer(proto.SerializeToString(deterministic=True))


def tokenizer_key(tokenizer: TokenizerConfig | AnyTokenizer) -> object:
    """Return JSON that distinguishes a tokenizer, and how its bytes are counted, from all others."""
    # Fields added later apply only where they matter, so caches of all other tokenizers stay valid.
    counted = {"bytes": "given back"} if may_lose_text(tokenizer) else {}
    if isinstance(tokenizer, TokenizerConfig):
        rounded = {"score_steps": SCORE_STEPS} if tokenizer.kind == "unigram" else {}
        return asdict(tokenizer) | rounded | counted
    changed = pretrained.FORMAT if isinstance(tokenizer, PretrainedTokenizer) else b""
    digest = hashlib.sha256(tokenizer.model + changed).hexdigest()
    return {"model": digest} | counted if counted else digest


def tokenizer_for(tokenizer: TokenizerConfig | AnyTokenizer, texts: Iterable[str]) -> AnyTokenizer:
    """Return a given tokenizer as it is, or train one on texts."""
    return train_tokenizer(tokenizer, texts) if isinstance(tokenizer, TokenizerConfig) else tokenizer


def _normalize(text: str, normalization: str) -> str:
    return unicodedata.normalize(_FORMS[normalization], text) if normalization in _FORMS else text


def _split_between_words(text: str, size: int) -> Iterator[str]:
    """Yield pieces of at least `size` characters, each but the last ending between two words."""
    start = 0
    while start < len(text):
        match = _BETWEEN_WORDS.search(text, start + size)
        end = match.start() if match else len(text)
        yield text[start:end]
        start = end


def _chunks(text: str) -> list[str]:
    """Split a text into chunks that are encoded separately; each U+2581 is its own chunk."""
    if SPACE in text:
        return [chunk for run in re.split(f"({SPACE})", text) for chunk in _split_between_words(run, CHUNK)]
    return [text] if len(text) <= CHUNK else list(_split_between_words(text, CHUNK))


def _sentences(text: str) -> Iterator[str]:
    """Yield training sentences, split between words where possible."""
    text = _LIKE_A_SPECIAL_PIECE.sub("<\n", text)
    for character in f"\0{SPACE}\u2585":  # it stops at the first, misreads the second, drops the third
        text = text.replace(character, "\n")
    for line in text.split("\n"):
        for run in _split_between_words(line, SENTENCE // 2):
            for start in range(0, len(run), SENTENCE):
                yield run[start : start + SENTENCE]


def _sample(sentences: Iterable[str]) -> list[str]:
    """Return every sentence, or every 2nd, 4th, 8th, ..., with at most `SAMPLE_CHARACTERS` in total."""
    sample, size, stride = [], 0, 1
    for number, sentence in enumerate(sentences):
        if number % stride == 0:
            sample.append(sentence)
            size += len(sentence)
            if size > SAMPLE_CHARACTERS and len(sample) > 1:
                sample, stride = sample[::2], 2 * stride
                size = sum(map(len, sample))
    return sample


def _remove_rare(sentences: list[str], config: TokenizerConfig) -> tuple[list[str], list[str]]:
    """Return the sentences, split at characters too rare for a token, and these characters, most frequent first."""
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
        num_frequent = room
    else:
        covered = list(accumulate(count[character] for character in ranked))
        num_frequent = min(bisect_left(covered, 0.9995 * covered[-1]) + 1, room // 2)
    rare = ranked[num_frequent:]
    to_line_end = dict.fromkeys(map(ord, rare), "\n")
    runs = [run for sentence in sentences for run in sentence.translate(to_line_end).split("\n") if run]
    return runs or [" "], rare
