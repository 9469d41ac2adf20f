"""Tokens prepared in shards equal those of `prepare`: with many processes, after a kill, and after damage."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from zerotollm.data import feed
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.tokens import shards, text, text_sources
from zerotollm.data.tokens.shards import prepare_in_shards, shards_of
from zerotollm.data.tokens.text import prepare
from zerotollm.errors import RunError

ROOT = Path(__file__).parents[3]
SETTINGS = TokenizerConfig(vocab_size=300)
WORDS = ["sea", "ship", "wind", "star", "salt", "rope", "café", "\U0001f600"]


def write_text(path: Path, documents: int, words: int) -> None:
    draw = random.Random(0)
    lines = (f'{{"text": "{" ".join(draw.choices(WORDS, k=words))}"}}\n' for _ in range(documents))
    path.write_text("".join(lines), "utf-8")


def prepared(folder: Path, documents: int, words: int) -> DataConfig:
    """Return a text prepared in one go."""
    write_text(folder / "text.jsonl", documents, words)
    data = DataConfig(str(folder / "text.jsonl"), dir=str(folder / "data"), validation_fraction=0.1)
    prepare(data, SETTINGS)
    return data


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> DataConfig:
    return prepared(tmp_path_factory.mktemp("whole"), 90, 20)


def contents(data: DataConfig) -> dict[str, bytes]:
    (folder,) = (path for path in Path(data.dir, "tokens").iterdir() if not path.name.startswith("."))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def elsewhere(data: DataConfig, tmp_path: Path) -> DataConfig:
    return replace(data, dir=str(tmp_path / "data"))


@pytest.mark.parametrize("shards", [1, 7, 1000])
def test_in_any_number_of_shards_the_bytes_are_the_same(whole, tmp_path, shards):
    data = elsewhere(whole, tmp_path)
    prepare_in_shards(data, SETTINGS, shards=shards)
    assert contents(data) == contents(whole)
    assert not list(Path(data.dir, "tokens").glob(".*-shards"))


def test_shards_are_all_documents_once_and_in_order(whole):
    corpus = open_corpus(whole)
    for number in (1, 7, 1000):
        shards = shards_of(corpus, number)
        for split, documents in corpus.splits.items():
            ranges = [range(shard.first, shard.last) for shard in shards if shard.split == split]
            assert [row for rows in ranges for row in rows] == list(range(len(documents)))
            assert len(ranges) == min(number, len(documents))
            assert all(ranges)


def test_finished_shards_are_reused_and_damaged_ones_made_anew(whole, tmp_path, monkeypatch):
    data, made = elsewhere(whole, tmp_path), []
    write = shards.SplitWriter

    def failing(folder, *arguments, **options):
        made.append(folder.name)
        if len(made) == 5:
            raise OSError(28, "No space left on device")
        return write(folder, *arguments, **options)

    monkeypatch.setattr(shards, "SplitWriter", failing)
    with pytest.raises(
        RunError, match=r"cannot prepare .*: No space left on device; free or allow space"
    ) as error:
        prepare_in_shards(data, SETTINGS, shards=8)
    assert "\n" not in str(error.value)
    (folder,) = Path(data.dir, "tokens").glob(".*-shards")
    finished = sorted(folder.glob("[tv]*-of-*"))
    assert len(finished) == 4
    next(finished[1].glob("*.tokens")).write_bytes(b"damaged")
    (finished[2] / "summary.json").write_text("{")
    lines, progress = [], []
    prepare_in_shards(
        data, SETTINGS, shards=8, say=lines.append, progress=lambda *done: progress.append(done)
    )
    assert contents(data) == contents(whole)
    wanted = len(shards_of(open_corpus(whole), 8))
    assert len(progress) == wanted - 4 + 2
    assert progress[-1] == (wanted, wanted)
    assert len(lines) == 2
    assert all(line.endswith(" is damaged and made anew") for line in lines)


def test_a_shard_in_another_process_is_left_to_it(whole, tmp_path, monkeypatch):
    """It is made once that process is gone."""
    import fcntl

    data = elsewhere(whole, tmp_path)
    monkeypatch.setattr(shards.os, "getpid", lambda: 0)
    wanted = shards_of(open_corpus(whole), 4)
    begins = shards.zlib.crc32(f"{shards.socket.gethostname()} 0".encode()) % len(wanted)
    shard = wanted[begins - 1]  # the last one in its order
    held = []

    def another_is_at_it(done: int, total: int) -> None:
        (folder,) = Path(data.dir, "tokens").glob(".*-shards")
        if not held and not (folder / shard.name).exists():
            held.append((folder / f".{shard.split}-{shard.number:05}.lock").open("w"))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        assert not held or not (folder / shard.name).exists() or held[0].closed

    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        held[0].close()

    monkeypatch.setattr(shards.time, "sleep", wait)
    prepare_in_shards(data, SETTINGS, shards=4, progress=another_is_at_it)
    assert waited
    assert contents(data) == contents(whole)


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_written(whole, tmp_path, monkeypatch):
    expected = text.estimate_bytes(open_corpus(whole), prepare(whole, SETTINGS).tokenizer)
    folder = next(Path(whole.dir, "tokens").glob("text*"))
    written = sum(path.stat().st_size for path in folder.glob("*.tokens"))
    written += sum(path.stat().st_size for path in folder.glob("*.starts"))
    assert expected == pytest.approx(written, rel=0.1)

    free = SimpleNamespace(free=expected // 2)
    monkeypatch.setattr(text.shutil, "disk_usage", lambda folder: free)
    monkeypatch.setattr(text, "write_split", None)
    monkeypatch.setattr(shards, "SplitWriter", None)
    data = elsewhere(whole, tmp_path)
    for make in (prepare, prepare_in_shards):
        with pytest.raises(RunError, match=r"will take about .* MB are free: free space there, or choose"):
            make(data, SETTINGS)
    free.free = expected * 1.5  # shards are there twice when they are joined
    with pytest.raises(RunError, match="will take about"):
        prepare_in_shards(data, SETTINGS)


def test_training_prepares_a_large_text_in_shards(whole, tmp_path, monkeypatch):
    data, seen = elsewhere(whole, tmp_path), []
    monkeypatch.setattr(text_sources, "LARGE", 10)
    feed.open_feed(data, SETTINGS, progress=lambda done, of: seen.append((done, of)))
    number = len(shards_of(open_corpus(whole), shards.SHARDS))
    assert seen == [(done, number) for done in range(1, number + 1)]
    assert contents(data) == contents(whole)


# --- with processes


def test_a_helper_takes_part_and_the_bytes_are_the_same(whole, tmp_path, monkeypatch):
    """This process waits until the helper has made a shard."""
    data = elsewhere(whole, tmp_path)
    monkeypatch.setattr(text_sources, "LONG", 0)
    wanted = shards_of(open_corpus(whole), 5)
    made, locked = [], shards.cache.exclusive_lock

    def after_the_helper(path, **options):
        if "-000" in path.name:
            deadline = time.monotonic() + 60
            while not list(path.parent.glob("[!.]*-of-*")) and time.monotonic() < deadline:
                time.sleep(0.01)
        return locked(path, **options)

    monkeypatch.setattr(shards.cache, "exclusive_lock", after_the_helper)
    sources = text_sources.text_sources(data, SETTINGS)
    text_sources.prepare_sources(sources, shards=5, helpers=1, progress=lambda done, of: made.append(done))
    assert contents(data) == contents(whole)
    assert len(made) < len(wanted)


def test_a_helper_ends_with_the_process_that_started_it(whole, tmp_path):
    task = {
        "data": asdict(elsewhere(whole, tmp_path)),
        "shards": 5,
        "parent": 1 << 30,
        "train": asdict(SETTINGS),
    }
    command = [sys.executable, "-m", "zerotollm.data.tokens.helper"]
    subprocess.run(command, input=json.dumps(task), cwd=ROOT, text=True, check=True, timeout=120)
    (folder,) = (tmp_path / "data" / "tokens").iterdir()
    assert len(list(folder.glob("[tv]*-of-*"))) == 1, "it sees after a shard that it is alone"


def start(data: DataConfig) -> subprocess.Popen:
    words = [f"--data.corpus={data.corpus}", f"--data.dir={data.dir}", "--data.validation-fraction=0.1"]
    words += ["--tokenizer.vocab-size=300", "--shards=40"]
    command = [sys.executable, "launch.py", "--experiment", "base", "prepare", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def made_parts(out: str) -> int:
    match = re.search(r"this process made (\d+) of", out)
    return int(match[1]) if match else 0


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> DataConfig:
    """A text that takes some seconds."""
    return prepared(tmp_path_factory.mktemp("large"), 8000, 300)


@pytest.mark.slow
def test_three_processes_share_the_work_of_one(large, tmp_path):
    data = elsewhere(large, tmp_path)
    processes = [start(data) for _ in range(3)]
    outs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outs
    assert contents(data) == contents(large)
    made = list(map(made_parts, outs))
    assert sum(made) == len(shards_of(open_corpus(large), 40)), "each shard is made once"
    assert sum(number > 0 for number in made) > 1, made


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet"])
def test_after_a_kill_only_missing_shards_are_made(large, tmp_path, suffix):
    data = elsewhere(large, tmp_path)
    if suffix != ".jsonl":
        data = replace(data, corpus=str(tmp_path / f"text{suffix}"))
        lines = Path(large.corpus).read_bytes()
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(map(json.loads, lines.splitlines()))), data.corpus)
        else:
            Path(data.corpus).write_bytes(zstandard.compress(lines))
    process = start(data)
    deadline = time.monotonic() + 120
    finished = lambda: list(Path(data.dir, "tokens").glob(".*-shards/[tv]*-of-*"))  # noqa: E731
    while process.poll() is None and len(finished()) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(finished())
    wanted = len(shards_of(open_corpus(large), 40))
    assert 5 <= done < wanted
    again = start(data)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert contents(data) == contents(large)
    assert made_parts(out) == wanted - done
    assert out.count("\n") < 15, out


@pytest.mark.parametrize("cut", [3, 8])
def test_a_shard_whose_starts_were_cut_is_made_anew(whole, tmp_path, monkeypatch, cut):
    """A cut of 3 bytes ends in the middle of a number."""
    data = elsewhere(whole, tmp_path)
    with monkeypatch.context() as context:
        context.setattr(shards, "build_once", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_in_shards(data, SETTINGS, shards=3)
    (path,) = Path(data.dir, "tokens").glob(".*-shards/train-00001-of-00003/train.starts")
    path.write_bytes(path.read_bytes()[:-cut])
    lines = []
    prepare_in_shards(data, SETTINGS, shards=3, say=lines.append)
    assert contents(data) == contents(whole)
    assert lines == ["train-00001-of-00003 is damaged and made anew"]
