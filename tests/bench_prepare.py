"""Text to tokens: speed beside SentencePiece's own, peak memory, and a preparation that is killed at random moments.

    python tests/bench_prepare.py --format parquet --megabytes 1000
    python tests/bench_prepare.py --format jsonl.zst --megabytes 1000
    python tests/bench_prepare.py --format parquet --megabytes 5000 --kills 0        # memory, for a large corpus

The corpus is made of the words of bible-web, drawn by their frequency, in files of 100 MB. One word in 50 is made of
the halves of two, since real text always brings new words. Time runs from the start of
`prepare` to its end, training of the tokenizer included. SentencePiece's own speed is that of
one call with the texts in memory and as many threads as cores. Memory is that of all processes together, shared pages
counted in proportion, read 10 times a second. Results are printed as JSON.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece
import zstandard

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from zerotollm.data.config import DataConfig  # noqa: E402
from zerotollm.data.sources.corpora import open_corpus  # noqa: E402

FILE_BYTES = 100_000_000
DOCUMENT_WORDS = 600
NEW_ONE_IN = 50


@cache
def words_by_frequency() -> tuple[np.ndarray, np.ndarray]:
    """Return the words of bible-web and the share of each."""
    documents = open_corpus(DataConfig("bible-web")).splits["train"]
    counts = Counter(word for document in documents for word in document.text.split())
    words, numbers = zip(*counts.items(), strict=True)
    return np.array(words), np.array(numbers) / sum(numbers)


def texts(num_bytes: int, seed: int) -> Iterator[str]:
    """Yield documents of English words in lines of a sentence's length."""
    words, shares = words_by_frequency()
    draw = np.random.default_rng(seed)
    made = 0
    while made < num_bytes:
        for chosen in draw.choice(words, (500, DOCUMENT_WORDS), p=shares):
            row = list(chosen)
            for place in draw.integers(0, DOCUMENT_WORDS, DOCUMENT_WORDS // NEW_ONE_IN):
                row[place] = row[place][:4] + row[place - 1][-4:]
            text = "\n".join(" ".join(row[k : k + 20]) for k in range(0, DOCUMENT_WORDS, 20))
            made += len(text)
            yield text


def write_corpus(folder: Path, kind: str, num_bytes: int) -> int:
    """Write files of `kind`, and return the bytes of text in them."""
    total = 0
    for number in range(max(1, num_bytes // FILE_BYTES)):
        documents = list(texts(min(num_bytes, FILE_BYTES), number))
        total += sum(len(text.encode()) for text in documents)
        file = folder / f"part-{number:03}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"text": documents}), file, row_group_size=1000)
        else:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
            file.write_bytes(zstandard.ZstdCompressor(level=3).compress(lines.encode()))
    return total


def command(folder: Path, data: Path, action: str = "prepare") -> list[str]:
    corpus, run = ["--data.corpus", str(folder)], ["--run-dir", str(data / "run")]
    return [sys.executable, str(ROOT / "launch.py"), "base", action, *corpus, *run, "--data.dir", str(data)]


def family(pid: int) -> list[int]:
    """Return a process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def proportional_memory(pid: int) -> int:
    """Return the bytes of a process and its children."""
    total = 0
    for member in family(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def prepared(folder: Path, data: Path, kill_after: list[float]) -> dict[str, float]:
    """Prepare, killed after each of some seconds, and return the seconds of the last start and the peak of memory."""
    peak = 0
    for limit in (*kill_after, None):
        start = time.perf_counter()
        process = subprocess.Popen(
            command(folder, data), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        while process.poll() is None:
            if limit and time.perf_counter() - start > limit:
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(OSError):  # it has just ended
                peak = max(peak, proportional_memory(process.pid))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode())
    return {"seconds": time.perf_counter() - start, "peak_mb": peak / 1e6}


def digest(data: Path) -> str:
    """Return a hash of all tokens."""
    hashed = hashlib.sha256()
    for file in sorted((data / "tokens").rglob("*")):
        if file.is_file():
            hashed.update(file.name.encode() + file.read_bytes())
    return hashed.hexdigest()


def sentencepiece_speed(data: Path) -> float:
    """Return the MB/s of the tokenizer alone."""
    model = next((data / "tokens").rglob("tokenizer.model"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    sample = list(texts(40_000_000, 0))
    start = time.perf_counter()
    processor.encode(sample, num_threads=os.cpu_count())
    return sum(len(text.encode()) for text in sample) / 1e6 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("parquet", "jsonl.zst", "jsonl"), default="parquet")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=3, help="times that a second preparation is killed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, first, again = (Path(name) / part for part in ("corpus", "first", "again"))
        for each in (folder, first, again):
            each.mkdir()
        num_bytes = write_corpus(folder, options.format, options.megabytes * 1_000_000)
        whole = prepared(folder, first, [])
        result = {"format": options.format, "text_mb": num_bytes / 1e6, "cores": os.cpu_count()} | whole
        result["mb_per_second"] = num_bytes / 1e6 / whole["seconds"]
        result["sentencepiece_mb_per_second"] = sentencepiece_speed(first)
        if options.kills:
            draw = random.Random(0)
            moments = [draw.uniform(3, max(4.0, whole["seconds"] / 2)) for _ in range(options.kills)]
            prepared(folder, again, moments)
            result |= {"killed_after": moments, "same_bytes": digest(first) == digest(again)}
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
