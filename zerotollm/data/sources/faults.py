"""Broken lines and rows of a corpus: the first is an error, or as many as `data.tolerate` allows are left out."""

import logging
from functools import lru_cache

from zerotollm.data.config import DataConfig
from zerotollm.errors import UsageError

MOST_NAMED = 3  # faults whose places the log names; further ones are counted

_warn_once = lru_cache(maxsize=256)(logging.getLogger(__name__).warning)  # a corpus is opened several times


class FaultCount:
    """Counts the broken rows of a corpus."""

    def __init__(self, config: DataConfig):
        self._config, self._rows, self.number = config, 0, 0
        self._first: list[UsageError] = []

    def add(self, row: object) -> None:
        """Count a row, which is broken if it is an error. Raises the error if none is tolerated."""
        self._rows += 1
        if isinstance(row, UsageError):
            if not self._config.tolerate:
                raise row
            self.number += 1
            if len(self._first) < MOST_NAMED:
                self._first.append(row)

    def check(self) -> None:
        """Log what was left out. Raises UsageError if it is more than `data.tolerate` allows."""
        if not self.number:
            return
        rows = f"{self.number:,} of {self._rows:,} rows of {self._config.corpus}"
        if self.number > self._config.tolerate * self._rows:
            raise UsageError(
                f"{rows} are broken ({self.number / self._rows:.2g} of all), and --data.tolerate "
                f"{self._config.tolerate:g} allows fewer; the first: {self._first[0]}"
            )
        more = self.number - len(self._first)
        places = "; ".join(map(str, self._first)) + (f"; and {more:,} more" if more else "")
        _warn_once(f"left out {rows}, which are broken: {places}")
