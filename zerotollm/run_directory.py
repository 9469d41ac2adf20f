"""The files of a run directory: who may write there, and how nothing there is ever half-written.

    config.json       the whole experiment; a directory belongs to one experiment for good
    environment.json  versions, device and git commit of the process that last trained here
    labels.json       where the model labels texts: the names of its labels
    tokenizer.model   SentencePiece; of an imported model JSON, see zerotollm.data.tokens.pretrained
    checkpoints/      see zerotollm.training.checkpoints
    metrics.jsonl     see zerotollm.training.metrics
    tensorboard/      the same numbers for `tensorboard --logdir`
    samples/          step-000250.txt: the text that the model wrote after that step
    summary.json      the final numbers; exists once the run is finished
    bench.json        what the action bench measured, before, during or after the run

No heavy imports.
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
from typing import Any, TypeVar

from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, differences, from_json, to_json
from zerotollm.host.atomic_files import cannot_write, write_atomically
from zerotollm.shell import another, typed_again

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
TOKENIZER = "tokenizer.model"
LABELS = "labels.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SAMPLES = "samples"
SUMMARY = "summary.json"
BENCH = "bench.json"
LOCK = ".lock"
BEGUN = {CONFIG, ENVIRONMENT, TOKENIZER, LABELS, CHECKPOINTS, METRICS, TENSORBOARD, SAMPLES}
"""What training has made before its first checkpoint."""
START = "train.start_from"
NOTED = ("written", "path", "from_here")
"""What environment.json says of it."""

T = TypeVar("T")

MAY_MOVE = (
    "data.dir",
    "compute.attention",
    "compute.cross_entropy",
    "compute.remat",
    "train.mesh",
)
"""What does not decide what is trained: a run may go on after its data was moved, with less memory, or on other
devices."""

PACKAGES = (
    "zerotollm",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "sentencepiece",
    "numpy",
)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Makes the directory and keeps every other process from writing there while the block runs.

    The kernel releases the lock when a process dies, however it dies. Raises RunError where another process
    holds it or where the directory cannot be written.
    """
    import fcntl

    path = run_dir / LOCK
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_write(run_dir, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{run_dir} is being written by process {file.read().strip() or '(unknown)'}: "
                "wait until it ends, or choose another --run-dir"
            ) from None
        try:
            file.truncate(0)
            # Not through the file's buffer: closing would try to write it again, and hide the line with its own error.
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        except OSError as error:
            raise cannot_write(path, error) from None
        yield


def claim(run_dir: Path, experiment: Experiment) -> None:
    """Writes config.json into a new run directory, or checks that the one there is the same experiment. One without a
    checkpoint is new too, and what was begun there is removed: a command that failed, over a wrong path perhaps, takes
    no name away.

    Raises UsageError where the directory belongs to another experiment, naming the fields that differ, or
    where it holds files that are no run; with the command for another directory, where one was typed.
    """
    held = {p.name for p in run_dir.iterdir() if not p.name.startswith(".") and p.name != BENCH}
    elsewhere = typed_again({"run_dir": another(run_dir)}) or "choose another --run-dir"
    if CONFIG in held:
        differing = [
            (name, was, now)
            for name, was, now in differences(read_experiment(run_dir), experiment)
            if name not in MAY_MOVE
            and not (name == START and str(now) in starts(run_dir, str(was), str(now)))
        ]
        if not differing:
            return
        if all(name.startswith("code.") for name, _, _ in differing):
            code = experiment.code if experiment.code.functions else read_experiment(run_dir).code
            raise UsageError(
                f"{code.module.replace('.', '/')}.py, whose {code.functions.replace(' ', '(), ')}() {run_dir} was "
                f"trained with, has changed: bring that code back, or start a new run: {elsewhere}"
            )
        if held - BEGUN or any((run_dir / CHECKPOINTS).glob("[0-9]*")):
            fields = ", ".join(f"{name} {was!r} (now {now!r})" for name, was, now in differing)
            raise UsageError(
                f"{run_dir} belongs to a run with {fields}: give the same values to go on with it"
                f"{_further(run_dir, differing)}, or start a new run: {elsewhere}"
            )
        for name in held - {CONFIG}:
            shutil.rmtree(run_dir / name) if (run_dir / name).is_dir() else (run_dir / name).unlink()
    elif held:
        raise UsageError(
            f"{run_dir} is no run directory: it holds {min(held)} and no {CONFIG}; start a new run: {elsewhere}"
        )
    write_atomically(run_dir / CONFIG, to_json(experiment))


def _further(run_dir: Path, differing: Sequence[tuple[str, Any, Any]]) -> str:
    """How a finished run is trained for more steps, where nothing else is asked of it."""
    if [name for name, _, _ in differing] != ["train.steps"] or not (run_dir / SUMMARY).exists():
        return ""
    changes = {"init_from": run_dir, "run_dir": another(run_dir)}
    more = typed_again(changes, without=("train.start_from",))
    return f", or train on from its parameters, with a new schedule: {more or '--init-from ' + str(run_dir)}"


def starts(run_dir: Path, start: str, also: str = "") -> list[str]:
    """Where the run is that the one in `run_dir` began with, `start` as its config.json has it: the places that hold a
    run, the likeliest first. Of two runs that were moved together, of one that was moved alone, and from whatever
    working directory. A path `also` that is one of the places is returned as it is.

    Training notes the place in environment.json. Without that, every folder above the run directory may be the one
    from which it was trained.
    """
    noted = {}
    with suppress(RunError):  # a hint alone
        noted = (read_environment(run_dir) or {}).get(START) or {}
    written = Path(start).expanduser()
    if not isinstance(noted, dict) or any(not isinstance(noted.get(key), str) for key in NOTED):
        noted = {}
    known = noted.get("written") == start  # config.json may have been edited
    places = [run_dir.resolve() / noted["from_here"], Path(noted["path"])] if known else []
    places += [written, *(parent / written for parent in run_dir.resolve().parents)]
    spelled = {path.resolve(): str(path) for path in (Path(also), written) if str(path) != "."}
    found = dict.fromkeys(place.resolve() for place in places if (place / CONFIG).is_file())
    return [spelled.get(place, str(place)) for place in found]


def located(run_dir: Path, experiment: Experiment) -> Experiment:
    """The experiment of a run directory with `train.start_from` as it is found from here."""
    start = experiment.train.start_from
    found = starts(run_dir, start) if start else []
    return replace(experiment, train=replace(experiment.train, start_from=found[0])) if found else experiment


def note_of_start(run_dir: Path, experiment: Experiment) -> dict[str, Any]:
    """What environment.json says for `starts`."""
    if not experiment.train.start_from:
        return {}
    path = Path(experiment.train.start_from).expanduser().resolve()
    written = read_experiment(run_dir).train.start_from
    here = os.path.relpath(path, run_dir.resolve())
    return {START: dict(zip(NOTED, (written, str(path), here), strict=True))}


def read_experiment(run_dir: Path) -> Experiment:
    """The experiment of a run directory. Raises UsageError where there is none."""
    path = run_dir / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"{run_dir} is no run directory: it has no readable {CONFIG}; name one that was trained in"
        ) from None
    if is_transformers(text):
        raise UsageError(
            f"{run_dir} is a model of transformers and no run directory; make one of it: "
            f"import-model --folder {run_dir} --run-dir runs/{run_dir.resolve().name}"
        )
    return from_json(text, str(path))


def is_transformers(config: str) -> bool:
    """Whether the text of a config.json is one of the transformers library."""
    try:
        raw = json.loads(config)
    except (ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and "model_type" in raw and "format" not in raw


def read_labels(run_dir: Path) -> tuple[str, ...]:
    """The names of a run's labels, in the order of their numbers; none where it does not label texts."""
    path = run_dir / LABELS
    return tuple(read_json(path, list, "bring it back from a copy")) if path.exists() else ()


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """The final numbers, or None while the run is not finished."""
    path = run_dir / SUMMARY
    advice = "delete it, and run the training again, which then writes it anew"
    return read_json(path, dict, advice) if path.exists() else None


def read_environment(run_dir: Path) -> dict[str, Any] | None:
    """What environment.json says, or None where it is not there."""
    path = run_dir / ENVIRONMENT
    return read_json(path, dict, "delete it: nothing depends on it") if path.exists() else None


def read_json(path: Path, kind: type[T], advice: str) -> T:
    """What a file of a run holds. Raises RunError, with the advice, where that is no JSON of this kind."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise RunError(f"{path} is damaged, and is no JSON as it was written: {advice}")
    return value


def environment() -> dict[str, Any]:
    """Versions, device and git commit: what a number measured here depends on besides the experiment."""
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
    """Commit of the source code, with a `+` where files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode or changed.returncode:
        return None
    return commit.stdout.strip() + ("+" if changed.stdout else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
