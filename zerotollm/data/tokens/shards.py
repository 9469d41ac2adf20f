"""The tokens of a large text corpus, prepared in shards by any number of processes, on one file system.

The result has the same bytes as that of `tokens.text.prepare`. A shard is a range of the documents of a split, so
processes agree on the work without communicating. Each makes the shards that nobody has made or is making:

    tokens/.NAME-KEY.N-shards/tokenizer.model        made by the first process
                              train-00003-of-00064/  a complete shard: it is renamed once it is written
                              .train-00003.lock      held by the process that makes it, released if that dies
    tokens/NAME-KEY/                                 all shards joined; the folder of shards is then removed

On a file system without locks, two processes may make the same shard; one of the equal copies is kept.
"""

import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zerotollm.data.cache_folder import build_once, cannot_prepare
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.lazy_sequence import in_groups
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.documents import SPLITS, Corpus, Document, training_texts
from zerotollm.data.tokens import cache
from zerotollm.data.tokens.sentencepiece import SAMPLE_CHARACTERS, AnyTokenizer, load_tokenizer, tokenizer_for
from zerotollm.data.tokens.text import GROUP, SplitWriter, check_disk_space, text_folder
from zerotollm.errors import RunError

SHARDS = 64
WAIT = 0.5  # seconds between checks whether other processes have finished or died
PART, SUMMARY = "part", "summary.json"
BLOCK = 1 << 22  # bytes joined at once; a multiple of 8
LARGE = 50_000  # training documents from which on training prepares in shards
Progress = Callable[[int, int], None]  # (shards made, shards in total)


@dataclass(frozen=True)
class Shard:
    """Documents `first` to `last` - 1 of a split; of a corpus in parts, part `first`, with documents of all splits."""

    split: str
    number: int
    of: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}-of-{self.of:05}"


def shards_of(corpus: Corpus[Document], number: int) -> list[Shard]:
    """Return at most `number` ranges of documents for each split, none empty; of a corpus in parts, every part."""
    if corpus.parts:
        number = len(corpus.parts)
        return [Shard(PART, k, number, k, k + 1) for k in range(number)]
    shards = []
    for split, documents in corpus.splits.items():
        count = min(number, len(documents))
        ends = [len(documents) * k // count for k in range(count + 1)] if count else [0]
        shards += [Shard(split, k, count, *ends[k : k + 2]) for k in range(count)]
    return shards


class _DamagedError(Exception):
    """The shard of this name is not as it was written."""


def prepare_in_shards(
    data: DataConfig,
    tokenizer: TokenizerConfig | AnyTokenizer,
    *,
    shards: int = SHARDS,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda done, total: None,
    corpus: Corpus[Document] | None = None,
) -> None:
    """Fill the folder that `prepare` fills, together with all other processes that do the same; raises as `prepare`.

    `say` tells of damaged shards, and `progress` is called after each shard that this process makes.
    """
    corpus = corpus or open_corpus(data)
    final = text_folder(data, corpus, tokenizer)
    if cache.is_intact(final):
        return
    cache.discard(final)
    folder = final.with_name(f".{final.name}.{shards}-shards")
    work = _Work(folder, final, corpus, shards_of(corpus, shards), say)
    while not final.is_dir():
        try:
            work.make_missing(tokenizer, progress)
            build_once(final, work.join)
        except _DamagedError as error:
            say(f"{error} is damaged and made anew")
            shutil.rmtree(work.folder / str(error), ignore_errors=True)
        except (OSError, RunError) as error:
            if not final.is_dir():  # otherwise another process has finished and removed the shards
                raise cannot_prepare(final, error) if isinstance(error, OSError) else error from error
    shutil.rmtree(work.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Work:
    folder: Path
    final: Path
    corpus: Corpus[Document]
    shards: list[Shard]
    say: Callable[[str], None]

    def exists(self, shard: Shard) -> bool:
        return (self.folder / shard.name).exists()

    def make_missing(self, config: TokenizerConfig | AnyTokenizer, progress: Progress) -> None:
        """Return when all shards, or the joined tokens, exist."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with cache.exclusive_lock(self.folder / ".tokenizer.lock"):
            if not (self.folder / cache.TOKENIZER).exists() and not self.final.exists():
                texts = training_texts(self.corpus, SAMPLE_CHARACTERS)
                tokenizer_for(config, texts).save(self.folder / cache.TOKENIZER)
        if self.final.exists():
            return
        tokenizer = load_tokenizer(self.folder / cache.TOKENIZER)
        if not any(map(self.exists, self.shards)):
            # The shards, and the joined tokens.
            check_disk_space(self.folder, self.corpus, tokenizer, copies=2)
        start = zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode()) % max(1, len(self.shards))
        order = self.shards[start:] + self.shards[:start]
        while missing := [shard for shard in order if not self.exists(shard)]:
            idle = True
            for shard in missing:
                lock = self.folder / f".{shard.split}-{shard.number:05}.lock"
                with cache.exclusive_lock(lock, wait=False) as locked:
                    if self.final.exists():
                        return
                    if locked and not self.exists(shard):
                        self.write(shard, tokenizer)
                        idle = False
                        done, total = sum(map(self.exists, self.shards)), len(self.shards)
                        progress(done, total)
            if idle:
                time.sleep(WAIT)

    def documents(self, shard: Shard) -> Iterator[tuple[str, str]]:
        """Yield (split, text) of the documents of a shard."""
        if shard.split == PART:
            yield from self.corpus.parts[shard.first]()
        else:
            documents = self.corpus.splits[shard.split]
            for index in range(shard.first, shard.last):
                yield shard.split, documents[index].text

    def write(self, shard: Shard, tokenizer: AnyTokenizer) -> None:
        temporary = self.folder / f".{shard.name}.{socket.gethostname()}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        names = SPLITS if shard.split == PART else (shard.split,)
        try:
            with ExitStack() as stack:
                writers = {name: SplitWriter(temporary, name, tokenizer, ended=True) for name in names}
                for writer in writers.values():
                    stack.enter_context(closing(writer))
                for group in in_groups(self.documents(shard), lambda document: len(document[1]), GROUP):
                    for name in {name for name, _ in group}:
                        writers[name].add([text for split, text in group if split == name])
            counts = {name: (int(writer.decoded.sum()), writer.total) for name, writer in writers.items()}
            sums = {path.name: cache.checksum(path) for path in sorted(temporary.iterdir())}
            (temporary / SUMMARY).write_text(json.dumps({"bytes": counts, "files": sums}))
            temporary.rename(self.folder / shard.name)
        except OSError:
            if not self.exists(shard):  # otherwise another process has made it
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def join(self, into: Path) -> None:
        """Fill an empty folder with the joined shards. Raises _DamagedError."""
        tokenizer = load_tokenizer(self.folder / cache.TOKENIZER)
        counts = cache.Counts()
        for split in self.corpus.splits:
            position = counts.num_bytes[split] = counts.lost[split] = 0
            arrays = [into / f"{split}.{name}" for name in ("tokens", "starts")]
            with arrays[0].open("wb") as tokens, arrays[1].open("wb") as starts:
                for shard in (shard for shard in self.shards if shard.split in (split, PART)):
                    folder = self.folder / shard.name
                    try:
                        summary = json.loads((folder / SUMMARY).read_text())
                        sums, (num_bytes, total) = summary["files"], summary["bytes"][split]
                        for name, out, offset in (("starts", starts, position), ("tokens", tokens, 0)):
                            name = f"{split}.{name}"
                            if _append(folder / name, out, offset) != sums[name]:
                                raise _DamagedError(shard.name)
                    except (ValueError, KeyError, TypeError):
                        raise _DamagedError(shard.name) from None
                    position = tokens.tell() // cache.token_type(tokenizer).itemsize
                    counts.num_bytes[split] += num_bytes
                    counts.lost[split] += total - num_bytes
        cache.write_manifest(into, tokenizer, counts)


def _append(path: Path, out: BinaryIO, offset: int) -> int:
    """Append a file, with `offset` added to its int64 unless it is 0. Return the checksum of what was read."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total = zlib.crc32(block, total)
            if offset:
                block = (np.frombuffer(block[: len(block) // 8 * 8], "<i8") + offset).astype("<i8").tobytes()
            out.write(block)
    return total
