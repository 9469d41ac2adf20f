"""The files that a path, a folder or a glob names, each once despite links. Files left out are logged."""

import errno
import glob
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from zerotollm.errors import UsageError

SUFFIXES = (".txt", ".md", ".html", ".epub", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".zst", ".xz")
TABLES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
LESSER = (".json", ".csv", ".tsv")
"""Read from a folder only where it holds nothing else: beside other text they are settings or numbers."""
ABOUT = re.compile(r"(readme|license|licence|dataset_infos?)\b.*", re.IGNORECASE)
"""Names of files about a data set, which a folder with tables holds beside them."""
MOST_NAMED = 3  # folders named in the log; further ones are counted

_warn_once = lru_cache(maxsize=256)(logging.getLogger(__name__).warning)  # a corpus is opened several times


@dataclass
class _LeftOut:
    """Folders, each with the reason, and numbers of files by kind that are not read."""

    folders: list[str] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        more = len(self.folders) - MOST_NAMED
        folders = [*self.folders[:MOST_NAMED], *([f"{more} more such folders"] if more > 0 else [])]
        return ", ".join(folders + [f"{number:,} {kind}" for kind, number in sorted(self.files.items())])


def find_files(corpus: str, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """Return {name: path}, sorted by name. Names are relative to a folder, so that it may be moved.

    An existing path is that file or folder; everything else is a glob. Links are followed; a file with several
    names has the one without links. Runs and models are left out, and logged. Raises UsageError if nothing is found.
    """
    path = Path(corpus).expanduser()
    left_out = _LeftOut()
    readable = f"files of {', '.join(suffixes)} (each also {', '.join(PACKED)}) are read"
    # os.path returns False where pathlib raises: a name too long, permission denied.
    if os.path.isdir(path):
        names = [os.path.relpath(file, path) for file in _walk(str(path), left_out)]
        files = _without_descriptions(_unique_files(str(path), names, suffixes, left_out), left_out)
        problem = f"folder {corpus} holds no text; {readable}"
    elif os.path.exists(path):
        if not os.path.isfile(path):  # reading would wait, or never end
            raise UsageError(
                f"{corpus} is a pipe or a device, and text is read several times: write it into a file first"
            )
        if not has_suffix(path.name, suffixes):
            raise UsageError(f"{corpus} has a suffix that is not read; {readable}")
        return {path.name: path}
    elif glob.has_magic(corpus):
        folder, names = _matches(str(path), left_out)
        files = _unique_files(folder, names, suffixes, left_out)
        if "." not in path.name:  # the glob names no suffix
            files = _without_descriptions(files, left_out)
        files = {file.as_posix(): file for file in files.values()}
        hint = "; a [ of a name is written [[]" if "[" in corpus else ""
        matched = f"{len(names)} paths but " if names else ""
        problem = f"{corpus} matches {matched}no text; {readable}{hint}"
    else:
        raise UsageError(f"{corpus} {why_missing(path)}; give a path, a folder or a glob")
    if not files:
        raise UsageError(problem + (f"; left out: {left_out}" if str(left_out) else ""))
    if str(left_out):
        _warn_once(f"left out of {corpus}: {left_out}")
    return dict(sorted(files.items()))


def why_missing(path: Path) -> str:
    """Return what is wrong with a path that cannot be opened, in words that follow its name."""
    try:
        path.stat()
    except PermissionError:
        return "may not be read: permission is denied"
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"cannot be read: {(error.strerror or str(error)).lower()}"
    except ValueError as error:
        return f"cannot be read: {error}"
    return "is not found" if path.is_absolute() else f"is not found in the working directory {Path.cwd()}"


def has_suffix(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Return whether a file of this name has one of the suffixes, maybe followed by one of `PACKED`."""
    name = name.lower()
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    return name.removesuffix(packed).endswith(suffixes)


def _without_descriptions(files: dict[str, Path], left_out: _LeftOut) -> dict[str, Path]:
    """Leave out README and LICENSE beside tables, and `LESSER` beside everything else."""
    kept = {name: path for name, path in files.items() if not has_suffix(name, LESSER)} or files
    if any(has_suffix(name, TABLES) for name in kept):
        kept = {name: path for name, path in kept.items() if not ABOUT.fullmatch(path.name)} or kept
    for name in files.keys() - kept.keys():
        left_out.files[_suffix(name) if has_suffix(name, LESSER) else files[name].name] += 1
    return kept


def _suffix(name: str) -> str:
    return "".join(Path(name).suffixes[-2 if name.lower().endswith(PACKED) else -1 :])


def _unique_files(
    folder: str, names: Iterable[str], suffixes: tuple[str, ...], left_out: _LeftOut
) -> dict[str, Path]:
    """Return the readable files among the names below a folder, each file under one name."""
    real_folder = os.path.realpath(folder)
    targets = {name: os.path.realpath(os.path.join(folder, name)) for name in names}
    files: dict[str, Path] = {}
    seen: set[str] = set()
    for name in sorted(targets, key=lambda name: (targets[name] != os.path.join(real_folder, name), name)):
        path = os.path.join(folder, name)
        if not has_suffix(name, suffixes):
            left_out.files[_suffix(name) or "without a suffix"] += 1
        elif not os.path.isfile(path):
            left_out.files["broken links" if os.path.islink(path) else "pipes or devices"] += 1
        elif targets[name] in seen:
            left_out.files["further links to a file"] += 1
        else:
            seen.add(targets[name])
            files[name] = Path(path)
    return files


def _walk(top: str, left_out: _LeftOut) -> Iterator[str]:
    """Yield every file below a folder, following links, without hidden files and folders of runs and models."""
    waiting: list[tuple[str, tuple[str, ...]]] = [(top, ())]
    while waiting:
        folder, parents = waiting.pop()
        real_folder = os.path.realpath(folder)
        if real_folder in parents:  # a link to a parent
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
                waiting.append((path, (*parents, real_folder)))


def _is_run_or_model(folder: str) -> bool:
    """Return whether a folder is a run or a suite of runs of this program, or a model of any library."""
    with suppress(OSError, ValueError):
        if re.fullmatch(r"\d+\n", Path(folder, ".lock").read_text("utf-8")):
            return True
    with suppress(OSError, ValueError, RecursionError):
        config = json.loads(Path(folder, "config.json").read_text("utf-8"))
        return isinstance(config, dict) and ({"format", "train"} <= config.keys() or "model_type" in config)
    return False


def _matches(pattern: str, left_out: _LeftOut) -> tuple[str, list[str]]:
    """Return the folder, taken literally, that contains all matches of a glob, and their names below it."""
    parts, folder = pattern.split("/"), ""
    while len(parts) > 1 and (not glob.has_magic(parts[0]) or os.path.isdir(f"{folder}{parts[0]}/")):
        folder += f"{parts.pop(0)}/"
    escaped = glob.escape(folder)
    if "**" not in parts:
        paths = glob.glob(escaped + "/".join(parts))
    else:  # glob.glob never ends where a link leads to a parent
        start = parts.index("**")
        tops = glob.glob(escaped + "/".join(parts[:start])) if start else [folder or "."]
        paths = [path for top in sorted(tops) for path in _walk(top, left_out)]
    names = [os.path.relpath(path, folder or ".") for path in paths if not os.path.isdir(path)]
    return folder, [name for name in names if _match(name.split("/"), parts)]


def _match(names: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return _match(names, pattern[1:]) or (bool(names) and _match(names[1:], pattern))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _match(names[1:], pattern[1:])
