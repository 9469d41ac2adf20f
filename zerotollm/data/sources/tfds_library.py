"""Everything that touches the tensorflow_datasets library: read prepared examples, prepare data sets.

Importing the library takes 0.5 s. A start from cached tokens does not need it, so this file is imported when the first
example is read or a data set is prepared.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import pkgutil
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from zerotollm.errors import RunError, UsageError
from zerotollm.host.atomic_files import Stamp, stamp
from zerotollm.suggest import did_you_mean
from zerotollm.types import Json

PACKAGES = {
    "apache_beam": ("Apache Beam", "apache-beam"),
    "tensorflow": ("TensorFlow", "tensorflow"),
    "bs4": ("Beautiful Soup", "beautifulsoup4"),
}
"""module -> its name and the name that pip knows, if they differ from the module's"""


def read_example(dataset: Path, split: str, index: int) -> Json:
    """Return one example of a data set (the directory with dataset_info.json). Raises RunError if it is damaged."""
    try:
        return _open_split(dataset, split, stamp(dataset))[index]
    except (OSError, ValueError, RuntimeError) as error:  # array_record raises RuntimeError for most
        reason = str(error).splitlines()[0]
        message = f"prepared data in {dataset} is damaged ({reason}); delete that folder and run again"
        raise RunError(message) from error


@lru_cache(maxsize=16)
def _open_split(dataset: Path, split: str, stamp: Stamp) -> Sequence[Json]:
    with quiet():
        # A decorator of TFDS hides the arguments of as_data_source.
        return tfds.builder_from_directory(dataset).as_data_source(split)  # pyright: ignore[reportCallIssue]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence TFDS: its greeting on stdout, progress bars on stderr, warnings through absl."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)


def download(name: str, dataset: str, folder: Path) -> str:
    """Prepare `name` (`dataset`, with configuration and version) below `folder`. Return what failed, or ""."""
    if problem := _missing_packages(dataset) or _network_problem():
        return problem
    try:
        # Progress bars stay visible: a download may take hours.
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    # Downloads and the code of a thousand data sets raise: network and disk (OSError), a missing package
    # (ImportError), unknown configuration or wrong checksum (ValueError), unsupported version (AssertionError).
    except (OSError, ImportError, ValueError, RuntimeError, AssertionError) as error:
        first_line = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {first_line}" if first_line else repr(error)
    return ""


def _missing_packages(dataset: str) -> str:
    """Return the command that installs the packages a data set needs, "" if none is missing. Downloads nothing."""
    try:
        with quiet():
            builder = _builder_class(dataset)
        needed = {package for base in builder.__mro__ for package in _lazy_imports(base.__module__)}
        if issubclass(builder, tfds.core.BeamBasedBuilder):
            needed.add("apache_beam")
        missing = {package for package in needed if not importlib.util.find_spec(package)}
    except tfds.core.DatasetNotFoundError:
        suggestion = did_you_mean(dataset, tfds.list_builders(with_community_datasets=False))
        message = f"there is no data set {dataset} in tensorflow-datasets {tfds.__version__}{suggestion}"
        raise UsageError(message) from None
    except ImportError as error:
        missing = {(error.name or str(error)).partition(".")[0]}
    if not missing:
        return ""
    titles, on_pip = zip(
        *(PACKAGES.get(package, (package, package)) for package in sorted(missing)), strict=True
    )
    return f"preparing it takes {' and '.join(titles)}: pip install {' '.join(on_pip)}"


def _builder_class(dataset: str) -> type:
    """Return the builder of a data set. Half of them are registered when the package of their field is imported."""
    with contextlib.suppress(tfds.core.DatasetNotFoundError):
        return tfds.builder_cls(dataset)
    for package in pkgutil.iter_modules(tfds.__path__, "tensorflow_datasets."):
        if package.ispkg and not package.name.endswith((".core", ".scripts", ".testing")):
            with contextlib.suppress(ImportError):
                importlib.import_module(package.name)
    return tfds.builder_cls(dataset)


def _lazy_imports(module: str) -> Iterator[str]:
    """Yield the packages that a data set's module imports when it first uses them."""
    if re.match(r"tensorflow_datasets\.core\b|builtins|abc", module):
        return
    with contextlib.suppress(OSError, TypeError):
        source = inspect.getsource(sys.modules[module])
        for match in re.finditer(r"lazy_imports_utils import (\w+)|core\.lazy_imports\.([a-z]\w*)", source):
            yield match[1] or match[2]


def _network_problem() -> str:
    """Return why there seems to be no network, "" if there is one. TFDS itself would try for minutes."""
    if urllib.request.getproxies():
        return ""
    try:
        socket.create_connection(("storage.googleapis.com", 443), timeout=5).close()
    except OSError as error:
        return f"no network: {error.strerror or error}"
    return ""
