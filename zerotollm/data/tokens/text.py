"""Corpus -> tokenizer -> tokens, prepared once and then read in place.

A folder `tokens/NAME-KEY` under the data directory holds `tokenizer.model`, one file of ids per split, and a
manifest. KEY is a hash of the corpus's fingerprint and the tokenizer's settings, so experiments that agree in
both share the folder, and a changed text gets a new one. A folder is complete or absent.
"""

import fcntl
import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zerotollm.data.cache_folder import build_once, data_directory
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.documents import Corpus
from zerotollm.data.tokens.pretrained import FORMAT as PRETRAINED
from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.data.tokens.sentencepiece import (
    OWN_IDS,
    SCORE_STEPS,
    AnyTokenizer,
    SpecialIds,
    byte_lengths,
    load_tokenizer,
    may_lose,
    train_tokenizer,
)
from zerotollm.errors import RunError

FORMAT = 1
"""To be raised with every change to a tokenizer's training, to encoding or to these files."""
GROUP = 4_000_000
"""Characters tokenized at once: what a large corpus takes in memory is a few times this."""
SAMPLED = 64
"""Documents of a split whose beginnings tell how much the tokens of all will be."""
CHECKED = 64_000_000
"""Bytes; smaller files are checked for damage whenever they are opened, larger ones only for their size."""
MANIFEST = "manifest"
"""Its first line is the checksum of its second."""
TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class TokenizedSplit:
    """The documents of a split as one row of tokens."""

    tokens_N: np.ndarray
    """ids, mapped from disk: of every document bos, then its text, then what ends it, see `write_split`. uint16, or
    uint32 where ids need it"""
    document_starts_D: np.ndarray
    """int64: where in tokens_N the bos of each document is"""
    num_bytes: int
    """of the documents' text in UTF-8 that the tokens give back, see `given_back`"""
    special: SpecialIds = OWN_IDS
    """of the tokenizer that made the tokens"""
    lost_bytes: int = 0
    """of the documents' text in UTF-8 that they do not"""


@dataclass(frozen=True)
class PreparedData:
    """All that training needs of a corpus."""

    corpus: str
    """its name"""
    tokenizer: AnyTokenizer
    splits: dict[str, TokenizedSplit]
    """train, validation, test; a split without documents has no tokens"""


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, corpus: Corpus | None = None
) -> PreparedData:
    """The tokens of `data.corpus`, made by a tokenizer that was trained on its training split alone, or by a given one;
    `corpus` is it, where it is open already.

    The first call reads the corpus twice, in pieces; later ones read nothing but what they return. Prepared
    tokens that were damaged are made anew. Raises UsageError where the corpus cannot be had or the vocabulary
    does not suit it, RunError where the data directory cannot be written.
    """
    corpus = corpus or open_corpus(data)
    folder = token_folder(data, corpus.name, [FORMAT, corpus.fingerprint, settings(tokenizer)])
    manifest = open_folder(folder, lambda temporary: _build(temporary, corpus, tokenizer))
    used = load_tokenizer(folder / TOKENIZER)
    splits = {
        split: read_split(
            folder,
            split,
            manifest["dtype"],
            num_bytes,
            SpecialIds.of(used),
            lost_bytes=manifest.get("lost", {}).get(split, 0),
        )
        for split, num_bytes in manifest["num_bytes"].items()
    }
    return PreparedData(corpus.name, used, splits)


def token_folder(data: DataConfig, corpus: str, described: list[Any]) -> Path:
    """Where the tokens of a corpus lie that `described` tells from all others."""
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(corpus).name)[-40:].strip(".-")
    return data_directory(data) / "tokens" / f"{name or 'corpus'}-{key}"


def open_folder(folder: Path, build: Callable[[Path], None]) -> dict[str, Any]:
    """The manifest of a folder of tokens; `build(temporary folder)` makes one where there is none, or a damaged one."""
    if not is_intact(folder):
        discard(folder)
        build_once(folder, build)
    return _read_manifest(folder)


def settings(tokenizer: TokenizerConfig | AnyTokenizer) -> Any:
    """What tells one tokenizer, and how its bytes are counted, from all others, as JSON."""
    # For some kinds alone: so all others keep what was prepared before it was added.
    counted = {"bytes": "given back"} if may_lose(tokenizer) else {}
    if isinstance(tokenizer, TokenizerConfig):
        # What a tokenizer's training does since it was last changed, for one kind alone.
        steps = {"score_steps": SCORE_STEPS} if tokenizer.kind == "unigram" else {}
        return asdict(tokenizer) | steps | counted
    # What an imported one makes of a text since that was last changed, for them alone.
    changed = PRETRAINED if isinstance(tokenizer, PretrainedTokenizer) else b""
    digest = hashlib.sha256(tokenizer.model + changed).hexdigest()
    return {"model": digest} | counted if counted else digest


def tokenizer_for(tokenizer: TokenizerConfig | AnyTokenizer, texts: Iterable[str]) -> AnyTokenizer:
    """A given tokenizer as it is, or one trained on texts."""
    return train_tokenizer(tokenizer, texts) if isinstance(tokenizer, TokenizerConfig) else tokenizer


def _build(folder: Path, corpus: Corpus, config: TokenizerConfig | AnyTokenizer) -> None:
    """Fills an empty folder."""
    tokenizer = tokenizer_for(config, (document.text for document in corpus.splits["train"]))
    check_room(folder, corpus, tokenizer)
    num_bytes, lost = {}, {}
    for split, documents in corpus.splits.items():
        texts = (document.text for document in documents)
        given_back_D, total = write_split(folder, split, texts, tokenizer, ended=True)
        num_bytes[split] = int(given_back_D.sum())
        lost[split] = total - num_bytes[split]
    write_manifest(folder, tokenizer, {"num_bytes": num_bytes, "lost": lost})


def check_room(folder: Path, corpus: Corpus, tokenizer: AnyTokenizer, copies: int = 1) -> None:
    """Raises RunError where the tokens will surely not fit on the disk: before hours of work, not after."""
    needed, free = copies * expected_bytes(corpus, tokenizer), shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"the tokens of {corpus.name} will take about {_size(needed)} in {folder.parent}, where "
            f"{_size(free)} are free: free space there, or choose another folder with --data.dir or "
            "$ZEROTOLLM_DATA"
        )


def _size(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.2f} MB"


def expected_bytes(corpus: Corpus, tokenizer: AnyTokenizer) -> int:
    """What the tokens of all documents will take on disk, about: as many as those of a few, spread evenly."""
    total = 0.0
    for documents in corpus.splits.values():
        picked = range(0, len(documents), max(1, len(documents) // SAMPLED))
        texts = [documents[index].text for index in picked]
        begun = [text[: GROUP // SAMPLED] for text in texts]
        tokens = sum(map(len, tokenizer.encode_batch(begun)))
        share = sum(map(len, begun)) / max(1, sum(map(len, texts)))
        if texts:
            total += tokens / max(share, 1e-9) * len(documents) / len(texts) * token_type(tokenizer).itemsize
        total += 8 * len(documents)  # where each starts
    return round(total)


def write_manifest(folder: Path, tokenizer: AnyTokenizer, rest: dict[str, Any]) -> None:
    """Writes the tokenizer and, last of all files, the manifest, which has checksums of the others."""
    tokenizer.save(folder / TOKENIZER)
    files = {path.name: [path.stat().st_size, checksum_of(path)] for path in sorted(folder.iterdir())}
    manifest = {"dtype": token_type(tokenizer).str, **rest, "files": files}
    content = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(b"%d\n%s\n" % (zlib.crc32(content), content))


def token_type(tokenizer: AnyTokenizer) -> np.dtype:
    """Of the ids on disk."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What `_build` wrote. Raises OSError where it is not there, ValueError where it is damaged."""
    checksum, content = (folder / MANIFEST).read_bytes().split(b"\n", 1)
    if zlib.crc32(content.strip()) != int(checksum):
        raise ValueError(f"{folder / MANIFEST} is damaged")
    return json.loads(content)


def write_split(
    folder: Path, split: str, texts: Iterable[str], tokenizer: AnyTokenizer, *, ended: bool = False
) -> tuple[np.ndarray, int]:
    """Writes the tokens of texts and where each starts. Returns `given_back` of them, and the UTF-8 bytes of them all.

    A text begins with bos; `ended`, it also has what the tokenizer puts after texts, unless that is the next one's bos.
    """
    total = position = 0
    kept, bytes_V = [np.zeros(0, np.int64)], byte_lengths(tokenizer)
    bos = np.array([tokenizer.bos_id], np.int32)
    end = np.array([tokenizer.stop_id] if ended and tokenizer.stop_id != tokenizer.bos_id else [], np.int32)
    dtype = token_type(tokenizer)
    with (folder / f"{split}.tokens").open("wb") as tokens, (folder / f"{split}.starts").open("wb") as starts:
        for group in _groups(texts):
            ids = tokenizer.encode_batch(group)
            length_D = np.array([len(bos) + len(ids_N) + len(end) for ids_N in ids], np.int64)
            end_D = position + np.cumsum(length_D)
            starts.write((end_D - length_D).astype("<i8").tobytes())
            tokens.write(
                np.concatenate([part for ids_N in ids for part in (bos, ids_N, end)]).astype(dtype).tobytes()
            )
            position = int(end_D[-1])
            total += sum(len(text.encode()) for text in group)
            kept.append(given_back(group, ids, bytes_V))
    return np.concatenate(kept), total


def given_back(texts: Sequence[str], ids: Sequence[np.ndarray], bytes_V: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of each text that its tokens give back, int64 [texts]; `bytes_V` are the tokens' `byte_lengths`.

    These are the bytes that a model predicts. They are fewer than the text has where characters became unk or
    normalization made them shorter, and never more, not even where the tokenizer puts a space before a text.
    """
    return np.array(
        [min(len(text.encode()), int(bytes_V[ids_N].sum())) for text, ids_N in zip(texts, ids, strict=True)],
        np.int64,
    )


def read_split(
    folder: Path,
    split: str,
    dtype: str,
    num_bytes: int,
    special: SpecialIds = OWN_IDS,
    lost_bytes: int = 0,
) -> TokenizedSplit:
    """What `write_split` wrote, mapped from disk."""
    return TokenizedSplit(
        mapped(folder / f"{split}.tokens", dtype),
        mapped(folder / f"{split}.starts", "<i8"),
        num_bytes,
        special,
        lost_bytes,
    )


def _groups(texts: Iterable[str]) -> Iterator[Sequence[str]]:
    """Texts in lists of about `GROUP` characters."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def mapped(path: Path, dtype: str) -> np.ndarray:
    """A file as an array that is read from disk where it is used. An empty file cannot be mapped."""
    if not path.stat().st_size:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)  # numpy's memmap class is slow to index


def checksum_of(path: Path) -> int:
    """Of a file's bytes."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def is_intact(folder: Path) -> bool:
    """Whether all files are there with the sizes, and if they are small the content, that were written."""
    try:
        files = _read_manifest(folder)["files"]
        return all(
            (folder / name).stat().st_size == size
            and (size > CHECKED or checksum_of(folder / name) == checksum)
            for name, (size, checksum) in files.items()
        )
    except (OSError, ValueError):
        return False


def discard(folder: Path) -> None:
    """Removes a damaged folder. Under the lock of `build_once`, so that one just made anew is not removed."""
    if not folder.exists():
        return
    try:
        with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists() and not is_intact(folder):
                shutil.rmtree(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"{folder} is damaged and cannot be removed ({reason}): delete it by hand") from error
