"""The files that a path, a folder or a glob names, each once whatever links there are; what is left out is logged."""

import glob
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from zerotollm.errors import UsageError

SUFFIXES = (".txt", ".md", ".jsonl")
NAMED = 3
"""Folders named in the line; of more only the number is given."""


@dataclass
class _LeftOut:
    """What is not read, for one line."""

    folders: list[str] = field(default_factory=list)
    """with the reason"""
    files: Counter[str] = field(default_factory=Counter)
    """by kind"""

    def __str__(self) -> str:
        more = len(self.folders) - NAMED
        folders = [*self.folders[:NAMED], *([f"{more} more of such"] if more > 0 else [])]
        return ", ".join(folders + [f"{number:,} {kind}" for kind, number in sorted(self.files.items())])


def find_files(corpus: str, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """{name: path} in the order of the names, which are relative to the folder, so that it may be moved.

    What exists as it is written is that file or folder, all else is a glob. Links are followed, and of several names of
    a file the one without links is taken. Runs and models below a folder are no text. Logs a line on what is left out.
    Raises UsageError where nothing is found.
    """
    path = Path(corpus).expanduser()
    left_out = _LeftOut()
    readable = f"files of {', '.join(suffixes)} (each also .gz) are read"
    # os.path answers no, where pathlib raises, for a name that is too long or may not be looked at.
    if os.path.isdir(path):
        names = [os.path.relpath(file, path) for file in _below(str(path), left_out)]
        found = _read_once(str(path), names, suffixes, left_out)
        if not found:
            raise UsageError(f"folder {corpus} holds no text; {readable}{_besides(left_out)}")
    elif os.path.exists(path):
        if not os.path.isfile(path):  # a pipe or a device would be waited for, or read without end
            raise UsageError(
                f"{corpus} is a pipe or a device, and text is read several times: write it into a file first"
            )
        if not has_suffix(path.name, suffixes):
            raise UsageError(f"{corpus} has a suffix that is not read; {readable}")
        return {path.name: path}
    elif glob.has_magic(corpus):
        folder, names = _matches(str(path), left_out)
        found = _read_once(folder, names, suffixes, left_out)
        if not found:
            brackets = "; a [ of a name is written [[]" if "[" in corpus else ""
            matched = f"{len(names)} paths but " if names else ""
            raise UsageError(f"{corpus} matches {matched}no text; {readable}{brackets}{_besides(left_out)}")
        found = {file.as_posix(): file for file in found.values()}
    else:
        raise UsageError(f"{corpus} does not exist or may not be looked at; give a path, a folder or a glob")
    if line := str(left_out):
        _log(f"left out of {corpus}: {line}")
    return dict(sorted(found.items()))


def has_suffix(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file of this name is read, perhaps unpacked first."""
    return name.lower().removesuffix(".gz").endswith(suffixes)


@lru_cache(maxsize=256)  # a corpus is opened several times
def _log(line: str) -> None:
    logging.getLogger(__name__).warning(line)


def _besides(left_out: _LeftOut) -> str:
    return f"; left out: {left_out}" if str(left_out) else ""


def _read_once(
    folder: str, names: Iterable[str], suffixes: tuple[str, ...], left_out: _LeftOut
) -> dict[str, Path]:
    """Of the names below a folder those of files that are read; of several names of a file one."""
    real = os.path.realpath(folder)
    places = {name: os.path.realpath(os.path.join(folder, name)) for name in names}
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for name in sorted(places, key=lambda name: (places[name] != os.path.join(real, name), name)):
        path = os.path.join(folder, name)
        if not has_suffix(name, suffixes):
            suffix = "".join(Path(name).suffixes[-2 if name.lower().endswith(".gz") else -1 :])
            left_out.files[suffix or "without a suffix"] += 1
        elif not os.path.isfile(path):
            left_out.files["by links to nothing" if os.path.islink(path) else "that are no files"] += 1
        elif places[name] in seen:
            left_out.files["by further links"] += 1
        else:
            seen.add(places[name])
            found[name] = Path(path)
    return found


def _below(top: str, left_out: _LeftOut) -> Iterator[str]:
    """Every path below a folder that is no folder, links followed; not what is hidden, nor runs and models."""
    waiting: list[tuple[str, tuple[str, ...]]] = [(top, ())]
    while waiting:
        folder, above = waiting.pop()
        real = os.path.realpath(folder)
        if real in above:  # a link leads back
            continue
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            left_out.folders.append(f"{os.path.relpath(folder, top)} ({error.strerror})")
            continue
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith("."):
                left_out.files["hidden"] += 1
            elif not os.path.isdir(path):
                yield path
            elif _is_run_or_model(path):
                left_out.folders.append(f"{os.path.relpath(path, top)} (a run or a model)")
            else:
                waiting.append((path, (*above, real)))


def _is_run_or_model(folder: str) -> bool:
    """Whether a folder is a run or a suite of runs that this program wrote, or holds a model of any library."""
    try:
        if re.fullmatch(r"\d+\n", Path(folder, ".lock").read_text("utf-8")):
            return True
    except (OSError, ValueError):
        pass
    try:
        config = json.loads(Path(folder, "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and ({"format", "train"} <= config.keys() or "model_type" in config)


def _matches(pattern: str, left_out: _LeftOut) -> tuple[str, list[str]]:
    """The folder that all matches of a glob lie in, and their names below it. The folders with which the pattern
    begins are taken as they are written, where they exist."""
    parts, folder = pattern.split("/"), ""
    while len(parts) > 1:
        longer = f"{folder}{parts[0]}/"
        if glob.has_magic(parts[0]) and not os.path.isdir(longer):
            break
        folder = longer
        del parts[0]
    within = glob.escape(folder)
    if "**" not in parts:
        found = glob.glob(within + "/".join(parts))
    else:  # glob.glob goes round and round where a link leads back
        start = parts.index("**")
        tops = glob.glob(within + "/".join(parts[:start])) if start else [folder or "."]
        found = [path for top in sorted(tops) for path in _below(top, left_out)]
    names = [os.path.relpath(path, folder or ".") for path in found if not os.path.isdir(path)]
    return folder, [name for name in names if _fits(name.split("/"), parts)]


def _fits(names: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return _fits(names, pattern[1:]) or (bool(names) and _fits(names[1:], pattern))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])
