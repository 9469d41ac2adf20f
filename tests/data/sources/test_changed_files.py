"""Files that change while they are read: no text is stored under the fingerprint of another one."""

import gzip
import json
import os
from pathlib import Path

import pytest

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources import own_files, parallel
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.parallel import open_parallel
from zerotollm.data.tokens.pairs import prepare_pairs
from zerotollm.data.tokens.shards import prepare_in_shards
from zerotollm.data.tokens.text import prepare
from zerotollm.errors import RunError

SETTINGS = TokenizerConfig(vocab_size=280)
COUNT = 40


def lines(word: str) -> bytes:
    return "".join(json.dumps({"text": f"{word} number {n}"}) + "\n" for n in range(COUNT)).encode()


def decoded(prepared) -> set[str]:
    """The documents, read back from the tokens."""
    return {
        prepared.tokenizer.decode(split.tokens_N[start:end])
        for split in prepared.splits.values()
        for start, end in zip(
            split.document_starts_D,
            [*split.document_starts_D[1:], len(split.tokens_N)],
            strict=True,
        )
    }


def prepared_folders(data: DataConfig) -> list[Path]:
    folder = Path(data.dir, "tokens")
    return [path for path in folder.iterdir() if path.is_dir()] if folder.exists() else []


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_that_is_written_anew_is_read_anew(tmp_path, name):
    """In one process, as in a notebook; the two texts have the same length and even the same time of change."""
    pack = gzip.compress if name.endswith(".gz") else bytes
    data = DataConfig(str(tmp_path / name), dir=str(tmp_path / "data"))
    for word in ("sun", "sea"):
        new = tmp_path / "new"
        new.write_bytes(pack(lines(word)))
        os.utime(new, ns=(10**18, 10**18))
        new.replace(tmp_path / name)
        assert decoded(prepare(data, SETTINGS)) == {f"{word} number {n}" for n in range(COUNT)}
    assert len(prepared_folders(data)) == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_change_between_scan_and_encoding_stops_with_one_line(tmp_path, name, shards):
    pack = gzip.compress if name.endswith(".gz") else bytes
    path = tmp_path / name
    path.write_bytes(pack(lines("sun")))
    data = DataConfig(str(path), dir=str(tmp_path / "data"), documents="paragraph")
    if name == "a.txt":
        path.write_bytes(lines("sun").replace(b"\n", b"\n\n"))
    corpus = open_corpus(data)
    changed = lines("sea") if name != "a.txt" else lines("sea").replace(b"\n", b"\n\n")
    for content in (changed, changed[: len(changed) // 2], b'"\xff' * len(changed)):
        path.write_bytes(pack(content))
        with pytest.raises(
            RunError, match=r"a\.\w+(\.gz)? was changed while it was read: run the same command again"
        ):
            prepare_in_shards(data, SETTINGS, shards=2, corpus=corpus) if shards else prepare(
                data, SETTINGS, corpus
            )
        assert prepared_folders(data) == [] or shards
    path.write_bytes(pack(changed))
    again = decoded(prepare(data, SETTINGS))
    assert len(again) == COUNT
    assert all("sea number" in text for text in again)


def test_a_line_that_is_added_while_a_file_is_read_stops_too(tmp_path, monkeypatch):
    """All documents that were found are unchanged then, but the fingerprint would be that of a longer text."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("sun"))
    digest = own_files.file_digest

    def late(path: Path) -> str:
        with path.open("ab") as file:
            file.write(b'{"text": "one more"}\n')
        return digest(path)

    monkeypatch.setattr(own_files, "file_digest", late)
    with pytest.raises(RunError, match="was changed while it was read"):
        open_corpus(DataConfig(str(path)))


def test_pairs_that_are_changed_while_they_are_read_stop_too(tmp_path, monkeypatch):
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"source {n}\ttarget {n}\n" for n in range(COUNT)))
    data = DataConfig(str(path), dir=str(tmp_path / "data"))
    digest = parallel.file_digest

    def late(path: Path) -> str:
        path.write_text(path.read_text() + "more\tand more\n")
        return digest(path)

    monkeypatch.setattr(parallel, "file_digest", late)
    with pytest.raises(RunError, match=r"a\.tsv was changed while it was read"):
        open_parallel(data)
    monkeypatch.undo()
    splits = prepare_pairs(data, SETTINGS).splits.values()
    assert sum(len(split.num_bytes) for split in splits) == COUNT + 1


def test_a_file_that_is_only_touched_is_the_same(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("sun"))
    corpus = open_corpus(DataConfig(str(path)))
    os.utime(path, ns=(10**18, 10**18))
    assert {document.text for split in corpus.splits.values() for document in split} == {
        f"sun number {n}" for n in range(COUNT)
    }
