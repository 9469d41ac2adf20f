"""TFDS builders of the corpora that come in packages. Imports tensorflow_datasets (never TensorFlow), and so
is imported only when a corpus is prepared."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from zerotollm.data.sources import bible, parallel, shakespeare
from zerotollm.data.sources.documents import Document

_TEXT = tfds.features.Text()


def _info(builder, description: str, metadata: dict) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict({"id": _TEXT, "text": _TEXT, **metadata})
    # Documents stay in the order in which they are given: that of the book.
    return tfds.core.DatasetInfo(
        builder=builder, description=description, features=features, disable_shuffling=True
    )


def _examples(documents: Iterable[Document]) -> Iterator[tuple[int, dict]]:
    for index, document in enumerate(documents):
        yield index, {"id": document.id, "text": document.text, **document.metadata}


class Bible(tfds.core.GeneratorBasedBuilder):
    """One example a chapter; one configuration a version."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=version, description=title) for version, title in bible.VERSIONS.items()
    )

    def _info(self) -> tfds.core.DatasetInfo:
        metadata = {"book": _TEXT, "chapter": np.int32, "genre": _TEXT, "version": _TEXT}
        return _info(
            self, "The Bible by chapters; every version has the same chapters in each split.", metadata
        )

    def _split_generators(self, dl_manager):
        chapters = bible.read_chapters(self.builder_config.name)
        return {split: self._generate_examples(documents) for split, documents in chapters.items()}

    def _generate_examples(self, documents):
        return _examples(documents)


class ParallelBible(tfds.core.GeneratorBasedBuilder):
    """One example a verse and source version: `text` is the source. Either side may be empty."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        description = "Verses in two versions of the Bible; the same chapters are held out in all versions."
        return _info(self, description, {"target": _TEXT, "version": _TEXT, "fault": _TEXT})

    def _split_generators(self, dl_manager):
        sources, target = self.builder_config.name.split("-")
        pairs = parallel.read_pairs(sources.split("_"), target)
        return {split: self._generate_examples(documents) for split, documents in pairs.items()}

    def _generate_examples(self, documents):
        return _examples(documents)


class Shakespeare(tfds.core.GeneratorBasedBuilder):
    """One example a play."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, "Shakespeare's plays.", {"genre": _TEXT})

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(documents) for split, documents in shakespeare.read_plays().items()
        }

    def _generate_examples(self, documents):
        return _examples(documents)


def make(name: str, config: str, folder: Path) -> tfds.core.DatasetBuilder:
    """A builder of this file that prepares in `folder`."""
    builder = globals()[name]
    known = {known.name for known in builder.BUILDER_CONFIGS}
    chosen = config if not config or config in known else tfds.core.BuilderConfig(name=config)
    return builder(data_dir=folder, config=chosen or None, file_format="array_record")
