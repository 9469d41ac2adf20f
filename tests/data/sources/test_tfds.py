"""TFDS data sets by name: prepared ones are read; the error for others is one line."""

import importlib.util
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from zerotollm.data.config import DataConfig
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.documents import Corpus
from zerotollm.data.sources.parallel import open_parallel
from zerotollm.data.sources.tfds_library import quiet
from zerotollm.errors import RunError, UsageError


def examples(start: int, stop: int):
    for i in range(start, stop):
        yield i, {"text": f"Text {i}: čau 🙂", "title": f"Title {i}", "label": i % 3}


class SmallTexts(tfds.core.GeneratorBasedBuilder):
    """Train and test; no validation."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="en"), tfds.core.BuilderConfig(name="de"))

    def _info(self):
        text = tfds.features.Text()
        features = {"text": text, "title": text, "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 100), "test": self._generate_examples(100, 120)}

    def _generate_examples(self, start, stop):
        return examples(start, stop)


class TwoTexts(tfds.core.GeneratorBasedBuilder):
    """No feature called text, and one document."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"question": tfds.features.Text(), "answer": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"question": "?", "answer": "!"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    with quiet():
        SmallTexts(data_dir=folder, config="en", file_format="array_record").download_and_prepare()
        TwoTexts(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, and no data sets of this machine's user."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))


def opened(name: str, folder: Path, **fields) -> Corpus:
    return open_corpus(DataConfig(corpus=name, dir=str(folder), **fields))


@pytest.mark.parametrize("name", ["tfds:small_texts/en", "tfds:small_texts", "tfds:small_texts/en:1.2.0"])
def test_reads_what_is_prepared(prepared, name):
    corpus = opened(name, prepared, validation_fraction=0.1)
    assert {split: len(documents) for split, documents in corpus.splits.items()} == {
        "train": 90,
        "validation": 10,
        "test": 20,
    }
    by_split = {split: {document.text for document in corpus.splits[split]} for split in corpus.splits}
    assert by_split["train"] | by_split["validation"] == {e["text"] for _, e in examples(0, 100)}
    assert by_split["test"] == {e["text"] for _, e in examples(100, 120)}
    document = corpus.splits["validation"][0]
    number = int(document.text.split()[1].strip(":"))
    assert document.metadata == {"title": f"Title {number}", "label": number % 3}


def test_fingerprint_follows_data_and_fractions(prepared, tmp_path):
    first = opened("tfds:small_texts", prepared).fingerprint
    assert first == opened("tfds:small_texts", prepared).fingerprint
    assert first != opened("tfds:small_texts", prepared, validation_fraction=0.1).fingerprint
    shutil.copytree(prepared, tmp_path / "copy")
    assert first == opened("tfds:small_texts", tmp_path / "copy").fingerprint


def test_reads_the_default_folder_of_tfds(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(opened("tfds:small_texts", tmp_path / "other").splits["test"]) == 20


def test_says_how_to_get_what_is_not_there(tmp_path):
    with pytest.raises(RunError) as caught:
        opened("tfds:ag_news_subset", tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "tfds:ag_news_subset",
        "no network",
        str(tmp_path / "data"),
        str(tmp_path / "default"),
        "--data.dir",
        "'ag_news_subset'",
    ):
        assert part in message
    assert "bible-web" in message.partition("available now:")[2]


@pytest.mark.parametrize(
    ("platform", "says"), [("win32", "use Linux, macOS or WSL 2"), ("linux", "pip install")]
)
def test_says_where_it_can_be_read(tmp_path, monkeypatch, platform, says):
    monkeypatch.setattr("zerotollm.data.sources.tfds.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(UsageError, match=f"^tfds: needs the package array-record.*{says}"):
        opened("tfds:lm1b", tmp_path)


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("wiki40b/en", "Apache Beam and TensorFlow: pip install apache-beam tensorflow"),
        ("c4/en", "Apache Beam: pip install apache-beam"),
        ("lm1b", "TensorFlow: pip install tensorflow"),  # wanted by its own code, after the download
        ("tiny_shakespeare", "TensorFlow: pip install tensorflow"),  # wanted on import
        ("cnn_dailymail", "TensorFlow: pip install tensorflow"),  # lives among summaries
    ],
)
def test_says_what_preparing_takes_before_it_downloads(tmp_path, monkeypatch, name, needs):
    lacking = {"apache_beam", "tensorflow"}
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in lacking else real(n, *a))
    with pytest.raises(RunError, match=f"preparing it takes {needs}") as caught:
        opened(f"tfds:{name}", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["wmt14_translate/de-en", "ted_hrlr_translate/pt_to_en", "flores/neen"])
def test_a_translation_set_is_found_wherever_it_lives(tmp_path, name):
    with pytest.raises(RunError, match=r"\(no network: Name or service not known\)"):
        open_parallel(DataConfig(corpus=f"tfds:{name}", dir=str(tmp_path)))


def test_preparing_fails_in_one_line(tmp_path, monkeypatch):
    class Connected:
        def close(self):
            pass

    monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: Connected())
    with pytest.raises(RunError, match="BuilderConfig") as caught:
        opened("tfds:small_texts/no_such_configuration", tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"there is no data set lm1 in .* did you mean lm1b\?") as caught:
        opened("tfds:lm1", tmp_path)
    assert "\n" not in str(caught.value)


def test_prepares_where_there_is_a_network(tmp_path, monkeypatch):
    class Connected:
        def close(self):
            pass

    monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: Connected())
    corpus = opened("tfds:small_texts/de", tmp_path)  # registered by being defined above, as TFDS's own are
    assert len(corpus.splits["test"]) == 20


def test_names_the_features_if_none_is_the_text(prepared):
    with pytest.raises(UsageError, match=r"2 text features .* answer \(Text\), question \(Text\)"):
        opened("tfds:two_texts", prepared)


def test_asks_which_configuration(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    shutil.copytree(tmp_path / "copy/small_texts/en", tmp_path / "copy/small_texts/fr")
    with pytest.raises(UsageError, match="tfds:small_texts/en, tfds:small_texts/fr"):
        opened("tfds:small_texts", tmp_path / "copy")


def test_refuses_other_formats_and_half_copies(prepared, tmp_path):
    version = tmp_path / "copy/small_texts/en/1.2.0"
    shutil.copytree(prepared, tmp_path / "copy")
    (version / "small_texts-test.array_record-00000-of-00001").unlink()
    with pytest.raises(RunError, match="0 of 1 files of split test"):
        opened("tfds:small_texts", tmp_path / "copy")
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(RunError, match="tfrecord files, which cannot be read without TensorFlow"):
        opened("tfds:small_texts", tmp_path / "copy")
    info.write_text("{")
    with pytest.raises(RunError, match="not a complete data set"):
        opened("tfds:small_texts", tmp_path / "copy")


@pytest.mark.parametrize("size", [0, 1000])
def test_damaged_files_name_the_folder_to_delete(prepared, tmp_path, size):
    shutil.copytree(prepared, tmp_path / "copy")
    version = tmp_path / "copy/small_texts/en/1.2.0"
    os.truncate(next(version.glob("*train*")), size)
    corpus = opened("tfds:small_texts", tmp_path / "copy")
    with pytest.raises(RunError, match=rf"prepared data in {version} is damaged \(.*\); delete that folder"):
        list(corpus.splits["train"])


def test_refuses_malformed_names_and_too_little(prepared, tmp_path):
    for name in ("tfds:", "tfds:a/b/c", "tfds:../etc"):
        with pytest.raises(UsageError, match="not of the form"):
            opened(name, tmp_path)
    with pytest.raises(UsageError, match=r"too few to keep 0\.001 of them"):
        opened("tfds:small_texts", prepared, validation_fraction=0.001)
