"""Everything that touches the datasets library: what a data set of the hub holds, and its texts, streamed.

Importing the library takes 1 s. A start from cached tokens does not need it.
"""

import logging
import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from urllib.parse import urlsplit

import datasets
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from zerotollm.errors import RunError, UsageError
from zerotollm.types import Json

ROWS = 256  # rows decoded at once
# Its first base is the error of the HTTP client, whose package depends on the library's version.
HTTP_ERROR = cast(type[Exception], HfHubHTTPError.__bases__[0])
FAILURES = (OSError, RuntimeError, ValueError, KeyError, HfHubHTTPError, HTTP_ERROR)
"""What reading raises where the hub, the network or a file fails."""


class _UnreachableError(Exception):
    """The hub cannot be reached."""


@contextmanager
def explained(place: str, available: list[str]) -> Iterator[None]:
    """Raise RunError in one line, with what is `available`, where reading fails; without the library's bars."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except _UnreachableError as error:
        raise RunError(
            f"{place} cannot be read: {error}; a clone of its repository is read as hf:FOLDER; available now: "
            f"{', '.join([*available, 'your own files'])}"
        ) from None
    except FAILURES as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RunError(f"{place} cannot be read: {reason}; run the same command again to go on") from error


def commit(name: str, revision: str) -> str:
    """Return the commit of a revision, or of the default branch."""
    _check_network()
    try:
        return str(HfApi().dataset_info(name, revision=revision or None).sha)
    except RevisionNotFoundError:
        raise UsageError(f"the data set {name} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise UsageError(_not_found(name)) from None


def describe(path: str, config: str, revision: str) -> Json:
    """Return {"splits": {name: number of files}, "fields": [...]} of a configuration. `path` is a name or a folder."""
    if revision:
        _check_network()
    try:
        builder = datasets.load_dataset_builder(path, config or None, revision=revision or None)
        names = [str(name) for name in builder.config.data_files or {}]
        streams = {name: _open(path, config, revision, name) for name in names}
    except DatasetNotFoundError:
        raise UsageError(_not_found(path)) from None
    except ValueError as error:  # names the configurations
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    first = next(iter(streams.values()), None)
    if first is None:
        raise UsageError(f"{path} has no files of data")
    fields = first.column_names or list(next(iter(first), {}))
    return {"splits": {name: stream.num_shards for name, stream in streams.items()}, "fields": fields}


def stream(
    path: str, config: str, revision: str, split: str, file: tuple[int, int], field: str
) -> Iterator[object]:
    """Yield the field of every row of a file of a split; `file` is its number and the number of files."""
    if revision:
        _check_network()
    number, of = file
    rows = _open(path, config, revision, split, field)
    part = rows.shard(num_shards=of, index=number) if of > 1 else rows
    for batch in part.iter(batch_size=ROWS):
        yield from batch[field]


def _open(path: str, config: str, revision: str, split: str, field: str = "") -> datasets.IterableDataset:
    name, options = config or None, {"split": split, "revision": revision or None, "streaming": True}
    rows = datasets.load_dataset(path, name, **options)
    return rows.select_columns([field]) if field else rows


def _not_found(name: str) -> str:
    return (
        f"there is no data set {name} on the hub, or it is private or gated: check the name, or accept its terms there "
        "and set HF_TOKEN"
    )


def _check_network() -> None:
    """Raise _UnreachableError at once where there is no network: the library would try for minutes."""
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "0") not in ("", "0"):
        raise _UnreachableError("HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set")
    if urllib.request.getproxies():
        return
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise _UnreachableError(f"no network: {error.strerror or error}") from error
