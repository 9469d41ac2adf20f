"""The files of a run directory: exclusive access, and reading and writing them. No heavy imports.

config.json       the experiment, which never changes
environment.json  versions, device and git commit of the process that last trained here
labels.json       label names, of a classifier
tokenizer.model   SentencePiece; of an imported model JSON, see zerotollm.data.tokens.pretrained
checkpoints/      see zerotollm.training.checkpoints
metrics.jsonl     see zerotollm.training.metrics
tensorboard/      the same numbers for `tensorboard --logdir`
samples/          step-000250.txt: the text that the model generated after that step
promise.json      what the run foretold of itself, see zerotollm.planning.promises
summary.json      the final numbers, and how far off the promises were; exists once the run is finished
bench.json        what the action bench measured, before, during or after the run
canaries/         what the action canaries measured, likewise
attribution/      what the action attribute measured, likewise
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, differences, from_json, to_json
from zerotollm.host.atomic_files import cannot_write, write_atomically
from zerotollm.host.file_lock import lock
from zerotollm.shell import CHECKOUT, another, typed_again
from zerotollm.types import Json

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
TOKENIZER = "tokenizer.model"
LABELS = "labels.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SAMPLES = "samples"
PROMISE = "promise.json"
SUMMARY = "summary.json"
BENCH, CANARIES, ATTRIBUTION = "bench.json", "canaries", "attribution"
LOCK = ".lock"
BEFORE_CHECKPOINT = {
    CONFIG, ENVIRONMENT, TOKENIZER, LABELS, CHECKPOINTS, METRICS, TENSORBOARD, SAMPLES, PROMISE,
}  # fmt: skip
"""Files that training creates before its first checkpoint."""
START = "train.start_from"
START_NOTE = ("written", "path", "from_here")
"""Keys of environment.json about `START`: as in config.json, absolute, and relative to the run directory."""
MAY_MOVE = ("data.dir", "compute.attention", "compute.cross_entropy", "compute.remat", "train.mesh")
"""Fields that may differ when a run resumes: with moved data, with less memory or on other devices."""
PACKAGES = ("zerotollm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "sentencepiece", "numpy")

T = TypeVar("T")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create the directory, and let no other process write there while the block runs, or raise RunError."""
    path = run_dir / LOCK
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_write(run_dir, error) from None
    with file:
        if not lock(file, wait=False):
            file.seek(0)
            raise RunError(
                f"{run_dir} is being written by process {file.read().strip() or '(unknown)'}: "
                "wait until it ends, or choose another --run-dir"
            )
        try:
            file.truncate(0)
            # Without the file's buffer, which closing would flush again, with an error of its own.
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        except OSError as error:
            raise cannot_write(path, error) from None
        yield


def claim(run_dir: Path, experiment: Experiment) -> None:
    """Write config.json into a new run directory, or check that the one there is the same experiment.

    A run without a checkpoint counts as new, and its files are removed: a failed command must not occupy the name.
    Raises UsageError, with the command for another directory, if it is another experiment's or holds other files.
    """
    beside = {BENCH, CANARIES, ATTRIBUTION}
    files = {p.name for p in run_dir.iterdir() if not p.name.startswith(".") and p.name not in beside}
    elsewhere = typed_again({"run_dir": another(run_dir)}) or "choose another --run-dir"
    if CONFIG in files:
        differing = [
            (name, before, now)
            for name, before, now in differences(read_experiment(run_dir), experiment)
            if name not in MAY_MOVE
            and not (name == START and str(now) in starts(run_dir, str(before), str(now)))
        ]
        if not differing:
            return
        if all(name.startswith("code.") for name, _, _ in differing):
            code = experiment.code if experiment.code.functions else read_experiment(run_dir).code
            raise UsageError(
                f"{code.module.replace('.', '/')}.py, whose {code.functions.replace(' ', '(), ')}() {run_dir} was "
                f"trained with, has changed: bring that code back, or start a new run: {elsewhere}"
            )
        if files - BEFORE_CHECKPOINT or any((run_dir / CHECKPOINTS).glob("[0-9]*")):
            fields = ", ".join(f"{name} {before!r} (now {now!r})" for name, before, now in differing)
            raise UsageError(
                f"{run_dir} belongs to a run with {fields}: give the same values to resume it"
                f"{_train_further(run_dir, differing)}, or start a new run: {elsewhere}"
            )
        for name in files - {CONFIG}:
            path = run_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif files:
        raise UsageError(
            f"{run_dir} is no run directory: it holds {min(files)} and no {CONFIG}; start a new run: {elsewhere}"
        )
    write_atomically(run_dir / CONFIG, to_json(experiment))


def _train_further(run_dir: Path, differing: Sequence[tuple[str, object, object]]) -> str:
    """Return advice on more steps for a finished run, if the number of steps is the only difference."""
    if [name for name, _, _ in differing] != ["train.steps"] or not (run_dir / SUMMARY).exists():
        return ""
    changes = {"init_from": run_dir, "run_dir": another(run_dir)}
    command = typed_again(changes, without=(START,)) or f"--init-from {run_dir}"
    return f", or train further from its parameters, with a new schedule: {command}"


def starts(run_dir: Path, start: str, also: str = "") -> list[str]:
    """Return existing run directories that `start`, the run's `train.start_from`, may name; the likeliest first.

    Finds the run from any working directory, if both runs were moved together, or this one alone: by the note in
    environment.json, else in every folder above. A path `also` that is one of the results keeps its spelling.
    """
    note: dict[str, str] = {}
    with suppress(RunError):  # the note is optional
        value = (read_environment(run_dir) or {}).get(START)
        # A `start` other than the noted one: config.json was edited.
        if isinstance(value, dict) and value.get("written") == start:
            note = {key: value[key] for key in START_NOTE if isinstance(value.get(key), str)}
    written = Path(start).expanduser()
    places = [written, *(parent / written for parent in run_dir.resolve().parents)]
    if len(note) == len(START_NOTE):
        places = [run_dir.resolve() / note["from_here"], Path(note["path"]), *places]
    spelled = {path.resolve(): str(path) for path in (Path(also), written) if str(path) != "."}
    runs = dict.fromkeys(place.resolve() for place in places if (place / CONFIG).is_file())
    return [spelled.get(run, str(run)) for run in runs]


def located(run_dir: Path, experiment: Experiment) -> Experiment:
    """Return the experiment of a run directory with `train.start_from` as a path from here."""
    start = experiment.train.start_from
    runs = starts(run_dir, start) if start else []
    return replace(experiment, train=replace(experiment.train, start_from=runs[0])) if runs else experiment


def note_of_start(run_dir: Path, experiment: Experiment) -> dict[str, dict[str, str]]:
    """Return the entry of environment.json that `starts` reads."""
    if not experiment.train.start_from:
        return {}
    path = Path(experiment.train.start_from).expanduser().resolve()
    written = read_experiment(run_dir).train.start_from
    from_here = os.path.relpath(path, run_dir.resolve())
    return {START: dict(zip(START_NOTE, (written, str(path), from_here), strict=True))}


def read_experiment(run_dir: Path) -> Experiment:
    """Return the experiment of a run directory. Raises UsageError if it has none."""
    path = run_dir / CONFIG
    refuse_gguf(run_dir)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"{run_dir} is no run directory: it has no readable {CONFIG}; name the directory of a trained run"
        ) from None
    if is_transformers(text):
        raise UsageError(
            f"{run_dir} is a model of transformers and no run directory; import it with "
            f"import-model --folder {run_dir} --run-dir runs/{run_dir.resolve().name}"
        )
    return from_json(text, str(path))


def refuse_gguf(path: Path) -> None:
    """Raise UsageError for a file of llama.cpp: parameters in it may be permuted and quantized."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(4) == b"GGUF":
            raise UsageError(
                f"{path} is a GGUF file, which is written here but not read: import the folder of transformers that "
                "it was converted from, with import-model --folder"
            )


def is_transformers(config: str) -> bool:
    """Return whether the text of a config.json is one of the transformers library."""
    with suppress(ValueError, RecursionError):
        raw = json.loads(config)
        return isinstance(raw, dict) and "model_type" in raw and "format" not in raw
    return False


def read_labels(run_dir: Path) -> tuple[str, ...]:
    """Return the label names of a classifier in the order of their numbers; none for other models."""
    path = run_dir / LABELS
    return tuple(read_json(path, list, "restore it from a backup")) if path.exists() else ()


def read_summary(run_dir: Path) -> Json | None:
    """Return the final numbers, or None while the run is not finished."""
    path = run_dir / SUMMARY
    advice = "delete it, and run the training again, which rewrites it"
    return read_json(path, dict, advice) if path.exists() else None


def read_environment(run_dir: Path) -> Json | None:
    path = run_dir / ENVIRONMENT
    return read_json(path, dict, "delete it: nothing depends on it") if path.exists() else None


def read_json(path: Path, kind: type[T], advice: str) -> T:
    """Return the JSON value of a file. Raises RunError, with the advice, if it is not of this kind."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise RunError(f"{path} is damaged: {advice}")
    return value


def environment() -> Json:
    """Return versions, device and git commit, on which numbers depend besides the experiment."""
    import jax

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "git_commit": git_commit(),
        "command": sys.argv,
        "versions": {name: _version(name) for name in PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def git_commit() -> str | None:
    """Return the commit of the source code, with a `+` if files differ from it; None outside a git checkout."""
    if not CHECKOUT:  # an installed copy may lie within a repository of its user
        return None
    git = ["git", "-C", str(Path(__file__).parent)]
    outputs = []
    try:
        for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
            done = subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True)
            outputs.append(done.stdout)
    except (OSError, subprocess.SubprocessError):
        return None
    commit, changed = outputs
    return commit.strip() + ("+" if changed else "")


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
