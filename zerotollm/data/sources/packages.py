"""Optional packages that carry a corpus. They are located and read as files, without importing them."""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import NamedTuple

from zerotollm.errors import UsageError


class Package(NamedTuple):
    """An importable name and the command that installs it."""

    module: str
    install: str

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.module)

    @property
    def folder(self) -> Path:
        """The directory of the package's files. Raises ModuleNotFoundError if it is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(self.module)
        return Path(spec.submodule_search_locations[0])

    def check_installed(self, corpus: str) -> None:
        """Raise UsageError with the install command if the package of `corpus` is missing."""
        if not self.is_installed:
            raise UsageError(f"{corpus} is not installed; install it with: {self.install}")
