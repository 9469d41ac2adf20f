"""The index of large files: a later start reads it instead of them, and a changed file has another one."""

import json
import os

import pytest

from zerotollm.data.config import DataConfig
from zerotollm.data.sources import own_files, text_index
from zerotollm.data.sources.corpora import open_corpus


@pytest.fixture
def data(tmp_path, monkeypatch) -> DataConfig:
    monkeypatch.setattr(text_index, "LARGE", 0)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(60)))
    return DataConfig(str(tmp_path / "a.jsonl"), dir=str(tmp_path / "data"))


def everything(data: DataConfig) -> tuple:
    corpus = open_corpus(data)
    return corpus.fingerprint, {split: list(documents) for split, documents in corpus.splits.items()}


def test_a_second_start_reads_no_file_and_finds_the_same(data, monkeypatch):
    first = everything(data)
    with monkeypatch.context() as patch:
        patch.setattr(own_files, "scan_texts", None)
        patch.setattr(own_files, "file_digest", None)
        patch.setattr(own_files, "find_overlap", None)
        assert everything(data) == first
    monkeypatch.setattr(text_index, "LARGE", 10**9)
    assert everything(data) == first, "without an index too"


def test_a_file_changed_in_place_is_read_again_even_with_its_old_time(data):
    first = everything(data)
    status = os.stat(data.corpus)
    with open(data.corpus, "r+") as file:
        file.write('{"text": "TEXT')
    os.utime(data.corpus, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = everything(data)
    assert changed[0] != first[0]
    assert "TEXT 0" in [document.text for documents in changed[1].values() for document in documents]


def test_a_damaged_index_is_made_again_and_broken_rows_are_always_said(data, tmp_path, caplog):
    first = everything(data)
    for path in (tmp_path / "data" / "index").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    assert everything(data) == first
    with open(data.corpus, "a") as file:
        file.write("broken\n")
    for _ in range(2):
        caplog.clear()
        own_files.FaultCount.check.__globals__["_warn_once"].cache_clear()
        open_corpus(DataConfig(data.corpus, dir=data.dir, tolerate=0.1))
        assert "left out 1 of 61 rows" in caplog.text
