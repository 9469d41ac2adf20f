"""A TFDS builder of documents. Importing tensorflow_datasets takes 0.5 s, so this file is imported only to write."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from zerotollm.data.sources.documents import Document


class Documents(tfds.core.GeneratorBasedBuilder):
    """One example per document: its id, its text and its metadata."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, splits: Mapping[str, Sequence[Document]], folder: Path):
        self._documents = splits  # `_info` is called by the base class
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        metadata = next(document.metadata for split in self._documents.values() for document in split)
        columns = {name: np.int32 if isinstance(value, int) else text for name, value in metadata.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Documents of a packaged corpus, in the order of the original.",
            features=tfds.features.FeaturesDict({"id": text, "text": text, **columns}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(documents) for split, documents in self._documents.items()}

    def _generate_examples(self, documents: Sequence[Document]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, document in enumerate(documents):
            yield index, {"id": document.id, "text": document.text, **document.metadata}
