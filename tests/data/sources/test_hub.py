"""Data sets of the Hugging Face Hub: from a folder, and over HTTP from a server on loopback."""

import gzip
import importlib.util
import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.hub_server import COMMIT, HubServer
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.feed import open_feed
from zerotollm.data.sources import hub
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.hub import HubName, parse, pin_revisions
from zerotollm.data.tokens import shards
from zerotollm.data.tokens.sentencepiece import load_tokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.session.data import pinned_data

SETTINGS = TokenizerConfig(vocab_size=300)
NAME = "someone/Sea-Stories"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: data/validation-*
- config_name: small
  data_files: data/train-00000*
---
# Sea stories
"""

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason=f"needs {hub.INSTALL}"
)


def story(name: str, i: int) -> str:
    return f"{name} story {i}: the ship, the wind, the {'salt' * (i % 7)} and a rope of {i * i} feet."


TRAIN = [[story(f"train {n}", i) for i in range(300)] for n in range(3)]
EVERY = TRAIN[0] + TRAIN[1] + TRAIN[2]
VALIDATION = [story("validation", i) for i in range(40)]


def flat(lists: Iterable[list[str]]) -> list[str]:
    return list(chain.from_iterable(lists))


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:

    folder = tmp_path_factory.mktemp("repository")
    (folder / "README.md").write_text(CARD)
    (folder / "data").mkdir()
    for number, texts in enumerate(TRAIN):
        table = pa.table({"id": list(range(len(texts))), "story": texts})
        pq.write_table(table, folder / "data" / f"train-{number:05}-of-00003.parquet", row_group_size=64)
    table = pa.table({"id": list(range(40)), "story": VALIDATION})
    pq.write_table(table, folder / "data" / "validation-00000-of-00001.parquet")
    return folder


@pytest.fixture
def data(repository, tmp_path) -> DataConfig:
    return DataConfig(f"hf:{repository}", dir=str(tmp_path / "data"), context=16, batch_size=4)


def decoded(data: DataConfig) -> dict[str, list[str]]:
    """Return the texts of the prepared tokens of each split."""
    open_feed(data, SETTINGS)
    (folder,) = (p for p in Path(data.dir, "tokens").iterdir() if not p.name.startswith("."))
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    texts = {}
    for split in ("train", "validation", "test"):
        tokens = np.fromfile(folder / f"{split}.tokens", "<u2")
        starts = np.fromfile(folder / f"{split}.starts", "<i8")
        texts[split] = (
            [tokenizer.decode(part) for part in np.split(tokens, starts[1:])] if len(starts) else []
        )
    return texts


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        ("hf:a/b", HubName("a/b", "", "", "")),
        ("hf:a/b/sample-10BT@v1.0:train_sft", HubName("a/b", "sample-10BT", "v1.0", "train_sft")),
        (f"hf:a/b@{COMMIT}", HubName("a/b", "", COMMIT, "")),
    ],
)
def test_names(corpus, expected):
    assert parse(corpus) == expected


@pytest.mark.parametrize("corpus", ["hf:", "hf:a", "hf:a/b:", "hf:a/b@", "hf:a/b c", "hf:https://x/a/b"])
def test_other_names_are_refused(corpus):
    with pytest.raises(UsageError, match="is not of the form hf:OWNER/NAME"):
        parse(corpus)


@needs_datasets
def test_a_folder_is_read_by_its_card(data, caplog):
    texts = decoded(data)
    held = texts["test"]
    assert sorted(texts["train"] + held) == sorted(EVERY)
    assert texts["validation"] == VALIDATION
    assert 20 < len(held) < 80, "no test split: a twentieth is held out"
    assert "the field 'story'" in caplog.text
    small = decoded(replace(data, corpus=f"{data.corpus}//small", dir=data.dir + "2"))
    assert sorted(flat(small.values())) == sorted(TRAIN[0])


@needs_datasets
def test_lines_and_a_split_of_its_own(data, repository, tmp_path):
    (tmp_path / "lines").mkdir()
    for number, part in enumerate(TRAIN):
        lines = "".join(json.dumps({"content": text}) + "\n" for text in part)
        (tmp_path / "lines" / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    texts = decoded(replace(data, corpus=f"hf:{tmp_path}/lines"))
    assert sorted(flat(texts.values())) == sorted(EVERY)
    assert all(texts.values())
    named = decoded(
        replace(data, corpus=f"hf:{repository}:validation", dir=data.dir + "2", validation_fraction=0.3)
    )
    assert sorted(flat(named.values())) == sorted(VALIDATION)
    assert named["validation"]


@needs_datasets
@pytest.mark.parametrize(
    ("suffix", "fields", "expected"),
    [
        ("//nope", {}, "'nope' not found. Available: ['default', 'small']"),
        (":nope", {}, "has no split nope; name one of its splits as hf:NAME:SPLIT: train, validation"),
        ("", {"field": "text"}, "has no field 'text'; set --data.field to one of its fields: id, story"),
        ("", {"field": "id"}, "split train, file 1 of 3, row 1: field 'id' is 0; expected a text"),
        ("-not-there", {}, "is not found"),
    ],
)
def test_errors_are_one_line(data, suffix, fields, expected):
    with pytest.raises((UsageError, RunError)) as caught:
        open_feed(replace(data, corpus=data.corpus + suffix, **fields), SETTINGS)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_datasets
def test_a_killed_preparation_goes_on_with_the_file_it_was_reading(data, tmp_path, monkeypatch):
    expected = decoded(data)
    other, written = replace(data, dir=str(tmp_path / "other")), []
    make = shards.SplitWriter

    def failing(folder, *arguments, **options):
        written.append(folder.name)
        if len(written) == 5:  # three splits for each file: the second file
            raise KeyboardInterrupt
        return make(folder, *arguments, **options)

    monkeypatch.setattr(shards, "SplitWriter", failing)
    with pytest.raises(KeyboardInterrupt):
        open_feed(other, SETTINGS)
    assert len(list(Path(other.dir, "tokens").glob(".*-shards/part-*-of-*"))) == 1
    assert decoded(other) == expected
    assert len(written) == 5 + 9
    assert not list(Path(other.dir, "tokens").glob(".*-shards"))


def test_without_the_library_it_says_what_to_install(data, monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match='install it with: pip install "datasets>=4,<6"'):
        open_corpus(data)


@pytest.fixture
def server(repository, monkeypatch, tmp_path):
    """A hub on loopback, whose address the libraries have taken."""
    server = HubServer(repository, NAME)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_to(monkeypatch, server.endpoint)
    yield server
    server.shutdown()


def point_to(monkeypatch, endpoint: str) -> None:
    import datasets.config
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)


@needs_datasets
def test_over_http_the_commit_is_pinned_and_no_network_is_needed_again(data, server, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    remote = replace(data, corpus=f"hf:{NAME}")
    texts = decoded(remote)
    assert texts["validation"] == VALIDATION
    assert sorted(texts["train"] + texts["test"]) == sorted(EVERY)
    pinned = f"hf:{NAME}@{COMMIT}"
    assert pinned_data(Experiment(data=remote)).data.corpus == pinned
    assert (
        pin_revisions(remote, f"hf:{NAME}/small*2 + bible-web", [])
        == f"hf:{NAME}/small@{COMMIT}*2 + bible-web"
    )
    server.shutdown()
    server.server_close()
    for corpus in (remote.corpus, pinned):
        assert open_feed(replace(remote, corpus=corpus), SETTINGS).tokens > 1000
    with pytest.raises(
        RunError, match=r"no network: .*a clone of its repository is read as hf:FOLDER; available now: "
    ):
        open_feed(replace(remote, corpus=f"hf:{NAME}/small"), SETTINGS)
    with pytest.raises(RunError, match="no network"):
        open_feed(replace(remote, corpus="hf:someone/else"), SETTINGS)


@needs_datasets
def test_over_http_what_does_not_exist_is_named(data, server):
    for corpus, expected in (
        ("hf:no/body", "there is no data set no/body"),
        (f"hf:{NAME}@v9", "has no revision v9"),
    ):
        with pytest.raises(UsageError, match=expected):
            open_corpus(replace(data, corpus=corpus))


@needs_datasets
def test_offline_is_said_at_once(data, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(
        RunError, match="HF_DATASETS_OFFLINE is set; a clone of its repository is read as hf:FOLDER"
    ):
        open_corpus(replace(data, corpus="hf:someone/else"))
