"""Any text data set of TensorFlow Datasets (tfds:lm1b, tfds:wiki40b/en), read without TensorFlow."""

import contextlib
import hashlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zerotollm.data.cache_folder import data_directory
from zerotollm.data.config import DataConfig
from zerotollm.data.sources.documents import Corpus, Document, LazyDocuments
from zerotollm.data.sources.own_files import fractions
from zerotollm.data.sources.packaged import plain, quiet, read_example
from zerotollm.data.sources.pairs import Pair, ParallelCorpus
from zerotollm.errors import RunError, UsageError
from zerotollm.suggest import did_you_mean

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[^:/]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def open_tfds(config: DataConfig, working: list[str]) -> Corpus:
    """The data set that `config.corpus` ("tfds:NAME", "tfds:NAME/CONFIG", either with ":1.2.3") names,
    prepared first where there is a network. `working` corpora are named in the message when it cannot be had.

    The data set's own validation and test splits are used. One that it lacks is cut off the end of train:
    `validation_fraction` and `test_fraction` of its documents, test last. Metadata: the other texts and
    integers of an example. Raises UsageError for a malformed name or a data set without one text; RunError if
    the data set cannot be had or is not in array_record files.
    """
    return _open(config, _dataset(config, working))


def _dataset(config: DataConfig, working: list[str]) -> Path:
    """The folder of the prepared data set."""
    name = config.corpus.removeprefix("tfds:")
    if not (parts := _NAME.fullmatch(name)):
        raise UsageError(
            f"'{config.corpus}' is not of the form tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.2.3"
        )
    default = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    places = [data_directory(config), default]
    return _find(parts, places) or _prepare(name, parts, places, working)


def _find(parts: re.Match, places: list[Path]) -> Path | None:
    """The newest prepared version: PLACE/NAME[/CONFIG]/VERSION with a dataset_info.json."""
    for place in places:
        folder = place / parts["name"] / (parts["config"] or "")
        if not os.access(folder, os.R_OK | os.X_OK):
            continue
        infos = list(folder.glob("*/dataset_info.json"))
        if not infos and not parts["config"]:
            infos = list(folder.glob("*/*/dataset_info.json"))
        versions = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
        if parts["version"]:
            versions = [version for version in versions if version.name == parts["version"]]
        if len({version.parent for version in versions}) > 1:
            configs = ", ".join(
                sorted({f"tfds:{parts['name']}/{version.parent.name}" for version in versions})
            )
            raise UsageError(f"{folder} holds several configurations; name one of {configs}")
        if versions:
            return max(versions, key=lambda version: tuple(map(int, version.name.split("."))))
    return None


def _prepare(name: str, parts: re.Match, places: list[Path], working: list[str]) -> Path:
    problem = _needs(parts["name"]) or _network_problem()
    if not problem:
        import tensorflow_datasets as tfds

        try:
            # The bars of a download are left to be seen: it may take hours.
            builder = tfds.builder(name, data_dir=places[0], file_format="array_record")
            builder.download_and_prepare()
        # What downloads and the code of a thousand data sets raise: network and disk (OSError), a package wanted
        # (ImportError), unknown configuration or wrong checksum (ValueError), unsupported version.
        except (OSError, ImportError, ValueError, RuntimeError, AssertionError) as error:
            problem = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error) else repr(error)
            )
    if found := None if problem else _find(parts, places):
        return found
    command = f"tfds.builder('{name}', data_dir='DIR', file_format='array_record').download_and_prepare()"
    raise RunError(
        f"tfds:{name} could not be had: it is not prepared in {' or '.join(map(str, places))}, and cannot be here "
        f"({problem or 'something else was prepared'}); prepare it where that is not so "
        f'(python -c "import tensorflow_datasets as tfds; {command}"), copy DIR here, give --data.dir DIR; '
        f"what works now: {', '.join([*working, 'your own files'])}"
    )


def _needs(name: str) -> str:
    """Which packages TFDS wants before it can prepare a data set, and has not; empty where it has all. Downloads
    nothing. Raises UsageError where there is no such data set."""
    import tensorflow_datasets as tfds

    try:
        with quiet():
            builder = _builder_class(name)
        lacking = {package for module in _modules(builder) for package in _imports(module)}
        if issubclass(builder, tfds.core.BeamBasedBuilder):
            lacking.add("apache_beam")
        lacking = {package for package in lacking if not importlib.util.find_spec(package)}
    except tfds.core.DatasetNotFoundError:
        raise UsageError(
            f"there is no data set {name} in tensorflow-datasets {tfds.__version__}"
            f"{did_you_mean(name, tfds.list_builders(with_community_datasets=False))}"
        ) from None
    except ImportError as error:
        lacking = {(error.name or str(error)).partition(".")[0]}
    if not lacking:
        return ""
    named = " and ".join(PACKAGES.get(package, (package, ""))[0] for package in sorted(lacking))
    install = " ".join(PACKAGES.get(package, ("", package))[1] for package in sorted(lacking))
    return f"preparing it takes {named}: pip install {install}"


PACKAGES = {
    "apache_beam": ("Apache Beam", "apache-beam"),
    "tensorflow": ("TensorFlow", "tensorflow"),
    "bs4": ("Beautiful Soup", "beautifulsoup4"),
}
"""What a module is called by people, and by pip, where that is not its own name."""


def _builder_class(name: str) -> type:
    """The class that prepares a data set. Half of them are registered when the package of their field is imported."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        for package in pkgutil.iter_modules(tfds.__path__, "tensorflow_datasets."):
            if package.ispkg and not package.name.endswith((".core", ".scripts", ".testing")):
                with contextlib.suppress(ImportError):
                    importlib.import_module(package.name)
        return tfds.builder_cls(name)


def _modules(builder: type) -> list[Any]:
    """The modules with a data set's own code."""
    names = {base.__module__ for base in builder.__mro__}
    return [
        sys.modules[name] for name in names if not re.match(r"tensorflow_datasets\.core\b|builtins|abc", name)
    ]


def _imports(module: Any) -> list[str]:
    """The packages that a module of TFDS imports when it first uses them."""
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return []
    found = re.findall(r"lazy_imports_utils import (\w+)|core\.lazy_imports\.([a-z]\w*)", source)
    return [first or second for first, second in found]


def _network_problem() -> str:
    """Why there seems to be no network; empty if there is one. TFDS itself would try for minutes."""
    if urllib.request.getproxies():
        return ""
    try:
        socket.create_connection(("storage.googleapis.com", 443), timeout=5).close()
    except OSError as error:
        return f"no network: {error.strerror or error}"
    return ""


def _open(config: DataConfig, dataset: Path) -> Corpus:
    info, described = _whole(dataset)
    try:
        features = described["featuresDict"]["features"]
    except KeyError as error:
        raise RunError(
            f"{dataset} is not a whole prepared data set ({error}); prepare or copy it again"
        ) from error
    field = _text_field(config.corpus, features)

    def load(split: str, index: int) -> Document:
        example = read_example(dataset, split, index, whole=dataset)
        kept = {key: plain(value) for key, value in example.items() if _is_plain(value)}
        return Document(f"{split}/{index}", kept.pop(field), kept)

    fingerprint, splits = _splits(config, dataset, info, features, load)
    return Corpus(config.corpus, fingerprint, splits)


def open_tfds_pairs(config: DataConfig, working: list[str]) -> ParallelCorpus:
    """The pairs of the translation set that `config.corpus` names, found or prepared as `open_tfds` does.

    Source and target are the data set's own: of wmt14_translate/de-en German and English. Raises UsageError for a
    data set that is no translation of one language into one other.
    """
    dataset = _dataset(config, working)
    info, described = _whole(dataset)
    features = described.get("featuresDict", {}).get("features", {})
    languages = described.get("translation", {}).get("languages") or [
        name for name, feature in features.items() if "text" in feature
    ]
    if len(languages) != 2:
        raise UsageError(
            f"{config.corpus} is no translation set of two languages: it holds {', '.join(languages or features)}"
        )
    items = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
    keys = [item.get("featureKey") for item in items]
    source, target = keys if sorted(map(str, keys)) == sorted(languages) else languages

    def load(split: str, index: int) -> Pair:
        example = read_example(dataset, split, index, whole=dataset)
        return Pair(f"{split}/{index}", str(plain(example[source])), str(plain(example[target])))

    fingerprint, splits = _splits(config, dataset, info, [source, target], load)
    return ParallelCorpus(config.corpus, fingerprint, splits)


def _whole(dataset: Path) -> tuple[dict, dict]:
    """dataset_info.json and features.json of a data set of which every file is there."""
    try:
        info = json.loads((dataset / "dataset_info.json").read_text("utf-8"))
        features = json.loads((dataset / "features.json").read_text("utf-8"))
        shards = {split["name"]: len(split.get("shardLengths", [])) for split in info["splits"]}
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise RunError(
            f"{dataset} is not a whole prepared data set ({error}); prepare or copy it again"
        ) from error
    if (file_format := info.get("fileFormat", "tfrecord")) != "array_record":
        raise RunError(
            f"{dataset} is in {file_format} files, which cannot be read without TensorFlow; prepare it again "
            "with tfds.builder(..., file_format='array_record')"
        )
    names = [name for name, _ in _files(dataset)]
    for split, expected in shards.items():
        present = sum(f"-{split}.array_record" in name for name in names)
        if present < expected:
            raise RunError(
                f"{dataset} has {present} of {expected} files of split {split}; copy it again, whole"
            )
    return info, features


def _files(dataset: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in dataset.iterdir() if path.is_file())


def _splits(
    config: DataConfig, dataset: Path, info: dict, features: Any, load: Callable[[str, int], Any]
) -> tuple[str, dict[str, LazyDocuments]]:
    """Fingerprint and splits, each example made by `load(its split, index)` when it is asked for."""
    counts = {split["name"]: sum(map(int, split.get("shardLengths", []))) for split in info["splits"]}
    ranges = _ranges(config, counts)
    splits = {
        name: LazyDocuments(len(rows), lambda i, split=split, rows=rows: load(split, rows[i]))
        for name, (split, rows) in ranges.items()
    }
    described = [
        info,
        features,
        _files(dataset),
        {name: (split, rows.start, rows.stop) for name, (split, rows) in ranges.items()},
    ]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(), splits


def _is_plain(value) -> bool:
    return isinstance(value, bytes | int) or (
        getattr(value, "shape", None) == () and value.dtype.kind in "iu"
    )


def _text_field(corpus: str, features: dict) -> str:
    texts = [name for name, feature in features.items() if "text" in feature]
    if "text" in texts or len(texts) == 1:
        return "text" if "text" in texts else texts[0]
    held = ", ".join(
        f"{name} ({feature['pythonClassName'].rpartition('.')[2]})" for name, feature in features.items()
    )
    raise UsageError(
        f"{corpus} has {len(texts) or 'no'} text features and none is called 'text'; it holds {held}"
    )


def _ranges(config: DataConfig, counts: dict[str, int]) -> dict[str, tuple[str, range]]:
    """{our split: (its split, documents)}. What is missing is cut off the end of train."""
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
