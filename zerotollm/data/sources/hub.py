"""Data sets of the Hugging Face Hub: hf:OWNER/NAME, hf:OWNER/NAME/CONFIG, with @REVISION and :SPLIT at the end.

    hf:roneneldan/TinyStories
    hf:HuggingFaceFW/fineweb-edu/sample-10BT@main:train
    hf:./clone-of-a-repository

A data set is streamed: its text becomes tokens while it is read, and is never stored. Each file of it is a part that
one process reads, so several processes share the work, and a killed one goes on with the file that it was reading.

The commit that a revision stands for is asked for once and kept below data.dir, and a run's config.json names it.
Without a revision, that is the newest commit at the first time. Once the tokens are there, no network is needed.

Splits: those of the data set that are called train, validation and test. Where one is missing, or a split is named, a
hash of each text holds out `data.validation_fraction` and `data.test_fraction`.
"""

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from zerotollm.data.cache_folder import data_directory
from zerotollm.data.config import DataConfig
from zerotollm.data.find import why_missing
from zerotollm.data.sources.documents import SPLITS, Corpus, Document
from zerotollm.data.sources.faults import FaultCount
from zerotollm.data.sources.lines import text_field
from zerotollm.data.sources.records import choose_field
from zerotollm.data.sources.splits import file_digest, fingerprint, fractions, hash64, split_of_hash
from zerotollm.data.sources.weighted import renamed
from zerotollm.errors import RunError, UsageError
from zerotollm.host.atomic_files import write_atomically
from zerotollm.types import Json

FORMAT = 1  # raise it when the texts or splits of a data set change
PREFIX = "hf:"
INSTALL = 'pip install "datasets>=4,<6"'
FORMS = "hf:OWNER/NAME, hf:OWNER/NAME/CONFIG, with @REVISION and :SPLIT at the end, or hf:FOLDER"
ALSO_CALLED = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[^@:]+))?(@(?P<revision>[^:]+))?(:(?P<split>[\w.-]+))?"
)
_LOCAL = re.compile(r"(?P<name>[./~].*?)(//(?P<config>[^@:/]+))?(?P<revision>)(:(?P<split>[\w.-]+))?")


class HubName(NamedTuple):
    """A data set, and what of it is read. Empty: the default configuration, the first revision, all splits."""

    name: str
    config: str
    revision: str
    split: str

    @property
    def is_local(self) -> bool:
        """Whether it is a folder, for example a clone."""
        return self.name[0] in "./~"


def parse(corpus: str) -> HubName:
    """Return the parts of `hf:NAME`. Raises UsageError for another form."""
    text = corpus.removeprefix(PREFIX)
    match = (_LOCAL if text.startswith((".", "/", "~")) else _NAME).fullmatch(text)
    if not match:
        raise UsageError(f"'{corpus}' is not of the form {FORMS}")
    hub = HubName(*(match[name] or "" for name in HubName._fields))
    if hub.is_local and not os.path.isdir(folder := Path(hub.name).expanduser()):
        problem = "is a file" if os.path.exists(folder) else why_missing(folder)
        raise UsageError(f"{corpus}: the folder {hub.name} {problem}")
    return hub


def pin_revisions(config: DataConfig, corpus: str, available: list[str]) -> str:
    """Return a corpus, maybe a mixture, with the commit of each data set of the hub in its name."""

    def pinned(name: str) -> str:
        if not name.startswith(PREFIX) or (hub := parse(name)).is_local:
            return name
        return _named(hub._replace(revision=_commit(config, hub, available)))

    return renamed(corpus, pinned) if PREFIX in corpus else corpus


def open_hub(config: DataConfig, available: list[str]) -> Corpus[Document]:
    """Return the data set that `config.corpus` names, as parts that are read in order.

    `available` corpora are named where the hub cannot be reached. Raises UsageError for a name, a configuration, a
    split or a field that does not exist, RunError where the hub cannot be reached.
    """
    hub = parse(config.corpus)
    commit = _commit(config, hub, available)
    described = _described(config, hub, commit, available)
    fields, files = described["fields"], described["splits"]
    field = choose_field(config, config.corpus, fields)
    sources = _splits(config.corpus, hub, files)
    held_out = fractions(config)
    missing = [split for split in SPLITS[1:] if split not in sources]
    description = [FORMAT, hub.name if not hub.is_local else "", commit, hub.config, sources, files, field]
    parts = [
        partial(
            _documents, config, hub, commit, split, name, (number, files[name]), field, missing, available
        )
        for split, name in sources.items()
        for number in range(files[name])
    ]
    fraction_texts = list(map(str, held_out)) if missing else []
    empty: dict[str, list[Document]] = {split: [] for split in SPLITS}
    return Corpus(
        _named(hub._replace(revision="")), fingerprint([*description, fraction_texts]), empty, parts=parts
    )


def _named(hub: HubName) -> str:
    """Return the name that `parse` reads; without a revision it also names the folder of tokens."""
    config = (f"//{hub.config}" if hub.is_local else f"/{hub.config}") if hub.config else ""
    revision, split = (f"@{hub.revision}" if hub.revision else ""), (f":{hub.split}" if hub.split else "")
    return f"{PREFIX}{hub.name}{config}{revision}{split}"


def _documents(
    config: DataConfig,
    hub: HubName,
    commit: str,
    split: str,
    name: str,
    file: tuple[int, int],
    field: str,
    missing: list[str],
    available: list[str],
) -> Iterator[tuple[str, str]]:
    """Yield (split, text) of every document in one of the files of a split. Blank texts are left out."""
    number, of = file
    place = f"{config.corpus}, split {name}, file {number + 1} of {of}"
    faults = FaultCount(config)
    library = _library()
    values = library.stream(_path(hub), hub.config, _revision(hub, commit), name, file, field)
    with library.explained(place, available):
        for row, value in enumerate(values, 1):
            text = _text(f"{place}, row {row}", value, field)
            faults.add(text)
            if isinstance(text, str) and text and not text.isspace():
                held = split_of_hash(config, hash64(text)) if split == "train" else split
                yield (held if held in missing else split), text
    faults.check()


def _text(place: str, value: object, field: str) -> str | UsageError:
    try:
        return text_field(place, {field: value}, field, may_be_blank=True).replace("\r\n", "\n")
    except UsageError as fault:
        return fault


def _splits(corpus: str, hub: HubName, files: dict[str, int]) -> dict[str, str]:
    """Return {our split: its name in the data set}."""
    wanted = hub.split or ("train" if "train" in files else "")
    if not wanted and len(files) == 1:
        (wanted,) = files
    if wanted not in files:
        problem = f"no split {hub.split}" if hub.split else "no split train"
        raise UsageError(
            f"{corpus} has {problem}; name one of its splits as {PREFIX}NAME:SPLIT: {', '.join(files)}"
        )
    if hub.split:
        return {"train": wanted}
    others = {split: next((n for n in names if n in files), "") for split, names in ALSO_CALLED.items()}
    return {"train": wanted} | {split: name for split, name in others.items() if name}


def _commit(config: DataConfig, hub: HubName, available: list[str]) -> str:
    """Return the commit of a revision; of a folder, a digest of its files."""
    if hub.is_local:
        folder = Path(hub.name).expanduser()
        files = sorted(path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
        return fingerprint([[str(path.relative_to(folder)), file_digest(path)] for path in files])
    if _COMMIT.fullmatch(hub.revision):
        return hub.revision
    record = _folder(config) / f"{_slug(hub.name)}.json"
    known = _read(record)
    if not hub.revision and "" in known:
        return known[""]
    try:
        library = _library()
        with library.explained(f"{PREFIX}{hub.name}", available):
            commit = library.commit(hub.name, hub.revision)
    except RunError:
        if hub.revision in known:
            return known[hub.revision]
        raise
    write_atomically(record, json.dumps(known | {hub.revision: commit}))
    return commit


def _described(config: DataConfig, hub: HubName, commit: str, available: list[str]) -> Json:
    """Return the number of files of each split, and the fields; kept, so that later starts need no network."""
    path = _folder(config) / f"{_slug(hub.name)}-{commit[:16]}-{_slug(hub.config or 'default')}.json"
    if described := _read(path):
        return described
    library = _library()
    with library.explained(config.corpus, available):
        described = library.describe(_path(hub), hub.config, _revision(hub, commit))
    write_atomically(path, json.dumps(described))
    return described


def _library() -> ModuleType:
    if importlib.util.find_spec("datasets") is None:
        raise UsageError(f"corpora named hf: are read by the datasets library; install it with: {INSTALL}")
    from zerotollm.data.sources import hub_library  # 1 s, which cached tokens do not need

    return hub_library


def _path(hub: HubName) -> str:
    return str(Path(hub.name).expanduser()) if hub.is_local else hub.name


def _revision(hub: HubName, commit: str) -> str:
    return "" if hub.is_local else commit


def _folder(config: DataConfig) -> Path:
    return data_directory(config) / "hub"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "--", name).strip("-.")


def _read(path: Path) -> Json:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
