"""Any text or translation data set of TensorFlow Datasets (tfds:lm1b, tfds:wiki40b/en), read without TensorFlow."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from zerotollm.data.cache_folder import data_directory
from zerotollm.data.config import DataConfig
from zerotollm.data.lazy_sequence import LazySequence, lazy_map
from zerotollm.data.sources.documents import Corpus, Document
from zerotollm.data.sources.pairs import Pair
from zerotollm.data.sources.splits import fingerprint, fractions
from zerotollm.errors import RunError, UsageError
from zerotollm.types import Json

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[^:/]+))?(:(?P<version>\d+\.\d+\.\d+))?")

T = TypeVar("T")


def open_tfds(config: DataConfig, available: list[str]) -> Corpus[Document]:
    """Return the data set that `config.corpus` names: tfds:NAME or tfds:NAME/CONFIG, either with :1.2.3.

    It is prepared first if there is a network; otherwise the error names the `available` corpora. A validation or test
    split that it lacks is cut off the end of train, test last. Metadata: the other texts and integers of an example.
    Raises UsageError for a malformed name or a data set without one text, RunError if it cannot be prepared or read.
    """
    dataset = _dataset(config, available)
    info, description = _read_info(dataset)
    try:
        features = description["featuresDict"]["features"]
    except KeyError as error:
        raise _incomplete(dataset, error) from error
    field = _text_field(config.corpus, features)

    def load(split: str, index: int) -> Document:
        example = _library().read_example(dataset, split, index)
        metadata = {key: _plain(value) for key, value in example.items() if _is_plain(value)}
        return Document(f"{split}/{index}", str(metadata.pop(field)), metadata)

    return Corpus(config.corpus, *_splits(config, dataset, info, features, load))


def open_tfds_pairs(config: DataConfig, available: list[str]) -> Corpus[Pair]:
    """Return the pairs of a translation set of two languages, in its direction; raises as `open_tfds`."""
    dataset = _dataset(config, available)
    info, description = _read_info(dataset)
    features = description.get("featuresDict", {}).get("features", {})
    languages = description.get("translation", {}).get("languages") or list(_texts(features))
    if len(languages) != 2:
        raise UsageError(
            f"{config.corpus} is not a translation set of two languages: it holds {', '.join(languages or features)}"
        )
    items = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
    keys = [item.get("featureKey") for item in items]
    source, target = keys if sorted(map(str, keys)) == sorted(languages) else languages

    def load(split: str, index: int) -> Pair:
        example = _library().read_example(dataset, split, index)
        return Pair(f"{split}/{index}", str(_plain(example[source])), str(_plain(example[target])))

    return Corpus(config.corpus, *_splits(config, dataset, info, [source, target], load))


def _library() -> ModuleType:
    if find_spec("array_record") is None:
        raise UsageError(
            "tfds: needs the package array-record, which Windows lacks: use Linux, macOS or WSL 2, or your own files"
            if sys.platform == "win32"
            else "tfds: needs the package array-record: pip install array-record"
        )
    from zerotollm.data.sources import tfds_library  # 0.5 s, which a start from cached tokens saves

    return tfds_library


def _dataset(config: DataConfig, available: list[str]) -> Path:
    name = config.corpus.removeprefix("tfds:")
    if not (parts := _NAME.fullmatch(name)):
        message = f"'{config.corpus}' is not of the form tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.2.3"
        raise UsageError(message)
    default = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    folders = [data_directory(config), default]
    if dataset := _find(parts, folders):
        return dataset
    problem = _library().download(name, parts["name"], folders[0])
    if not problem and (dataset := _find(parts, folders)):
        return dataset
    command = f"tfds.builder('{name}', data_dir='DIR', file_format='array_record').download_and_prepare()"
    raise RunError(
        f"tfds:{name} is not prepared in {' or '.join(map(str, folders))}, and cannot be prepared here "
        f"({problem or 'something else was prepared'}); prepare it on another machine "
        f'(python -c "import tensorflow_datasets as tfds; {command}"), copy DIR here, give --data.dir DIR; '
        f"available now: {', '.join([*available, 'your own files'])}"
    )


def _find(parts: re.Match[str], folders: list[Path]) -> Path | None:
    """Return the newest prepared version: FOLDER/NAME[/CONFIG]/VERSION."""
    for folder in (folder / parts["name"] / (parts["config"] or "") for folder in folders):
        if not os.access(folder, os.R_OK | os.X_OK):
            continue
        infos = list(folder.glob("*/dataset_info.json"))
        if not infos and not parts["config"]:
            infos = list(folder.glob("*/*/dataset_info.json"))
        versions = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
        if parts["version"]:
            versions = [version for version in versions if version.name == parts["version"]]
        configs = sorted({version.parent.name for version in versions})
        if len(configs) > 1:
            choices = ", ".join(f"tfds:{parts['name']}/{config}" for config in configs)
            raise UsageError(f"{folder} holds several configurations; name one of {choices}")
        if versions:
            return max(versions, key=lambda version: tuple(map(int, version.name.split("."))))
    return None


def _read_info(dataset: Path) -> tuple[Json, Json]:
    """Return dataset_info.json and features.json. Raises RunError if a file of the data set is missing."""
    try:
        info, features = (
            json.loads((dataset / name).read_text("utf-8")) for name in ("dataset_info.json", "features.json")
        )
        shards = {split["name"]: len(split.get("shardLengths", [])) for split in info["splits"]}
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise _incomplete(dataset, error) from error
    if (file_format := info.get("fileFormat", "tfrecord")) != "array_record":
        raise RunError(
            f"{dataset} is in {file_format} files, which cannot be read without TensorFlow; prepare it again "
            "with tfds.builder(..., file_format='array_record')"
        )
    names = [name for name, _ in _files(dataset)]
    for split, expected in shards.items():
        present = sum(f"-{split}.array_record" in name for name in names)
        if present < expected:
            message = f"{dataset} has {present} of {expected} files of split {split}; copy all of it again"
            raise RunError(message)
    return info, features


def _incomplete(dataset: Path, error: Exception) -> RunError:
    return RunError(f"{dataset} is not a complete data set ({error}); prepare or copy it again")


def _files(dataset: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in dataset.iterdir() if path.is_file())


def _splits(
    config: DataConfig, dataset: Path, info: Json, features: object, load: Callable[[str, int], T]
) -> tuple[str, dict[str, LazySequence[T]]]:
    """Return fingerprint and splits; `load(split of the data set, index)` makes an item."""
    counts = {split["name"]: sum(map(int, split.get("shardLengths", []))) for split in info["splits"]}
    ranges = _ranges(config, counts)
    splits = {name: lazy_map(partial(load, split), rows) for name, (split, rows) in ranges.items()}
    rows = {name: (split, rows.start, rows.stop) for name, (split, rows) in ranges.items()}
    return fingerprint([info, features, _files(dataset), rows], sort_keys=True), splits


def _plain(value: Any) -> str | int:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else int(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bytes | int) or (
        getattr(value, "shape", None) == () and value.dtype.kind in "iu"
    )


def _texts(features: Mapping[str, Json]) -> Iterable[str]:
    return (name for name, feature in features.items() if "text" in feature)


def _text_field(corpus: str, features: Mapping[str, Json]) -> str:
    texts = list(_texts(features))
    if "text" in texts or len(texts) == 1:
        return "text" if "text" in texts else texts[0]
    names = ", ".join(
        f"{name} ({feature['pythonClassName'].rpartition('.')[2]})" for name, feature in features.items()
    )
    raise UsageError(
        f"{corpus} has {len(texts) or 'no'} text features and none is called 'text'; its features are {names}"
    )


def _ranges(config: DataConfig, counts: Mapping[str, int]) -> dict[str, tuple[str, range]]:
    """Return {our split: (its split, documents)}. A missing split is cut off the end of train."""
    if not counts.get("train"):
        raise UsageError(f"{config.corpus} has no train split; it has {', '.join(counts) or 'none'}")
    validation, test = fractions(config)
    end = counts["train"]
    ranges = {}
    for name, fraction in (("test", test), ("validation", validation)):
        if counts.get(name):
            ranges[name] = (name, range(counts[name]))
        else:
            size = int(fraction * counts["train"])
            ranges[name] = ("train", range(end - size, end))
            end -= size
    if not ranges["validation"][1] or end < 1:
        raise UsageError(
            f"{config.corpus} has no validation split, and its {counts['train']} training documents are too "
            f"few to keep {float(validation):g} of them for validation"
        )
    return {"train": ("train", range(end)), "validation": ranges["validation"], "test": ranges["test"]}
