"""The tokens of a corpus that is too much for one process: made in shards by any number of processes, on one machine or
on several that see the same file system, and joined to the very bytes that `tokens.prepare` writes.

A shard is a range of the documents of a split, so that all processes agree on what there is to do without a word. Each
takes shards that nobody has finished or is at, beginning at a place of its own:

    tokens/.NAME-KEY.N-shards/tokenizer.model        by the first that comes
                              train-00003-of-00064/  a shard, whole or not there: renamed when it is written
                              .train-00003.lock      held by the process that is at it; the kernel lets go when it dies
    tokens/NAME-KEY/                                 all of them joined; then the folder of shards goes

Where a file system has no locks, two may write a shard: the same bytes, of which one is kept.
"""

import fcntl
import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zerotollm.data.cache_folder import build_once, cannot_prepare
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.documents import Corpus
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, load_tokenizer
from zerotollm.data.tokens.text import (
    FORMAT,
    TOKENIZER,
    check_room,
    checksum_of,
    discard,
    is_intact,
    settings,
    token_folder,
    token_type,
    tokenizer_for,
    write_manifest,
    write_split,
)
from zerotollm.errors import RunError

SHARDS = 64
WAIT = 0.5
"""Seconds until it is looked again whether others have finished, or died."""
PART, SUMMARY = "part", "summary.json"
BLOCK = 1 << 22
"""Bytes that are joined at once; a multiple of 8."""
LARGE = 50_000
"""Training documents from which on training, too, prepares a text in shards: so that it goes on when it is killed."""
Progress = Callable[[int, int], None]
"""(shards that are there, of how many)"""


@dataclass(frozen=True)
class Shard:
    """Some documents of a split, one after the other."""

    split: str
    number: int
    of: int
    first: int
    last: int
    """that is no longer among them"""

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}-of-{self.of:05}"


def shards_of(corpus: Corpus, number: int) -> list[Shard]:
    """Ranges of documents, at most `number` in each split and none empty."""
    found = []
    for split, documents in corpus.splits.items():
        count = min(number, len(documents))
        ends = [len(documents) * k // count for k in range(count + 1)] if count else [0]
        found += [Shard(split, k, count, *ends[k : k + 2]) for k in range(count)]
    return found


def prepare_in_shards(
    data: DataConfig,
    tokenizer: TokenizerConfig | AnyTokenizer,
    *,
    shards: int = SHARDS,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda done, of: None,
    corpus: Corpus | None = None,
) -> None:
    """Makes the folder of tokens that `tokens.text.prepare` makes, together with whatever other processes do the same.

    Returns once it is there. `corpus` is that of `data`, where it is open already.

    Killed and called again, it goes on with the shards that are missing. Raises as `prepare` does.
    """
    corpus = corpus or open_corpus(data)
    final = token_folder(data, corpus.name, [FORMAT, corpus.fingerprint, settings(tokenizer)])
    if is_intact(final):
        return
    discard(final)
    folder, wanted = final.with_name(f".{final.name}.{shards}-shards"), shards_of(corpus, shards)
    while not final.is_dir():
        try:
            _make_missing(folder, final, corpus, tokenizer, wanted, say, progress)
            build_once(final, lambda temporary: _join(folder, temporary, corpus, wanted))
        except _DamagedError as error:
            say(f"{error} is damaged and made anew")
            shutil.rmtree(folder / str(error), ignore_errors=True)
        except (OSError, RunError) as error:
            if not final.is_dir():  # else others have finished, and cleared the shards away
                raise cannot_prepare(final, error) if isinstance(error, OSError) else error from error
    shutil.rmtree(folder, ignore_errors=True)


class _DamagedError(Exception):
    """The shard of this name is not as it was written."""


def _make_missing(
    folder: Path,
    final: Path,
    corpus: Corpus,
    config: TokenizerConfig | AnyTokenizer,
    wanted: list[Shard],
    say: Callable[[str], None],
    progress: Progress,
) -> None:
    """Returns when all shards are there, or what they are for."""
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder / ".tokenizer.lock", wait=True):
        if not (folder / TOKENIZER).exists() and not final.exists():
            texts = (document.text for document in corpus.splits["train"])
            tokenizer_for(config, texts).save(folder / TOKENIZER)
    if final.exists():
        return
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if not any((folder / shard.name).exists() for shard in wanted):
        check_room(folder, corpus, tokenizer, copies=2)  # shards, and what they are joined to
    own = zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode()) % max(1, len(wanted))
    order = wanted[own:] + wanted[:own]
    while missing := [shard for shard in order if not (folder / shard.name).exists()]:
        made = 0
        for shard in missing:
            with _held(folder / f".{shard.split}-{shard.number:05}.lock") as mine:
                if final.exists():
                    return
                if mine and not (folder / shard.name).exists():
                    _write(folder, shard, corpus, tokenizer)
                    made += 1
                    done = sum((folder / other.name).exists() for other in wanted)
                    say(
                        f"{shard.name}: {shard.last - shard.first:,} documents; {done} of {len(wanted)} shards"
                    )
                    progress(done, len(wanted))
        if not made:
            time.sleep(WAIT)


@contextmanager
def _held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether the lock is ours. It is, too, where there are no locks: what is done twice is harmless."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def _write(folder: Path, shard: Shard, corpus: Corpus, tokenizer: AnyTokenizer) -> None:
    documents = corpus.splits[shard.split]
    temporary = folder / f".{shard.name}.{socket.gethostname()}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        texts = (documents[index].text for index in range(shard.first, shard.last))
        given_back_D, total = write_split(temporary, PART, texts, tokenizer, ended=True)
        num_bytes = int(given_back_D.sum())
        sums = {path.name: checksum_of(path) for path in sorted(temporary.iterdir())}
        summary = {"num_bytes": num_bytes, "lost": total - num_bytes, "files": sums}
        (temporary / SUMMARY).write_text(json.dumps(summary))
        temporary.rename(folder / shard.name)
    except OSError:
        if not (folder / shard.name).exists():  # else another was quicker
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _join(folder: Path, into: Path, corpus: Corpus, wanted: list[Shard]) -> None:
    """Fills an empty folder. Raises _DamagedError."""
    tokenizer = load_tokenizer(folder / TOKENIZER)
    item = token_type(tokenizer).itemsize
    num_bytes, lost = dict.fromkeys(corpus.splits, 0), dict.fromkeys(corpus.splits, 0)
    for split in corpus.splits:
        position = 0
        with (into / f"{split}.tokens").open("wb") as tokens, (into / f"{split}.starts").open("wb") as starts:
            for shard in wanted:
                if shard.split != split:
                    continue
                sums, own_bytes, own_lost = _summary(folder / shard.name)
                for name, out, offset in (
                    (f"{PART}.starts", starts, position),
                    (f"{PART}.tokens", tokens, 0),
                ):
                    if _copy(folder / shard.name / name, out, offset) != sums[name]:
                        raise _DamagedError(shard.name)
                position = tokens.tell() // item
                num_bytes[split] += own_bytes
                lost[split] += own_lost
    write_manifest(into, tokenizer, {"num_bytes": num_bytes, "lost": lost})


def _summary(part: Path) -> tuple[dict[str, int], int, int]:
    """Checksums of a shard's files, and the UTF-8 bytes of its documents that the tokens give back and do not."""
    try:
        summary = json.loads((part / SUMMARY).read_text())
        return summary["files"], summary["num_bytes"], summary.get("lost", 0)
    except (ValueError, KeyError, TypeError):
        raise _DamagedError(part.name) from None


def _copy(path: Path, out: BinaryIO, offset: int) -> int:
    """Appends a file, `offset` added to its int64 where there is one; returns the checksum of what was read."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total = zlib.crc32(block, total)
            if offset:
                block = (np.frombuffer(block[: len(block) // 8 * 8], "<i8") + offset).astype("<i8").tobytes()
            out.write(block)
    return total
