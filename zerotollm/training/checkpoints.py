"""Checkpoints: written by Orbax while training goes on, committed by a rename, checked by their checksums.

    checkpoints/00000250/state/         the whole TrainState (Orbax)
    checkpoints/00000250/metrics.jsonl  a copy of the lines so far
    checkpoints/00000250/manifest.json  step, what the host has to remember, size and SHA-256 of every file
    checkpoints/.00000500.saving/       not finished, or left by a killed process: never read (.removed too)

Orbax finds a file that is missing or cut short, but reads flipped bits without a word; the checksums find
both, and cost about a millisecond for each megabyte.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from zerotollm.errors import RunError
from zerotollm.host.atomic_files import cannot_write, write_atomically
from zerotollm.sharding.processes import is_first, on_first
from zerotollm.training.config import TrainConfig, due

AHEAD = 20
"""While a checkpoint is being saved, at most this part of the interval between two is trained beyond it."""
MANIFEST = "manifest.json"
STATE = "state"


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint, not yet read or checked."""

    step: int
    path: Path

    def manifest(self) -> dict[str, Any] | None:
        """What was written beside the arrays, or None where it cannot be read."""
        try:
            read = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return read if isinstance(read, dict) else None

    def bpb(self) -> float | None:
        """Validation bits per byte at that step; None where none was measured."""
        validation = (self.manifest() or {}).get("notes", {}).get("validation")
        return validation["bpb"] if validation else None


def finished(directory: Path) -> list[Checkpoint]:
    """All finished checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if re.fullmatch(r"\d{8,}", path.name)]
    return sorted((Checkpoint(int(name), directory / name) for name in names), key=lambda c: c.step)


def of_step(directory: Path, step: int) -> Checkpoint:
    """The one of a step that was finished."""
    return Checkpoint(step, directory / f"{step:08}")


def best(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The one with the lowest validation bits per byte; the newest where none was measured."""
    measured = [(bpb, c) for c in checkpoints if (bpb := c.bpb()) is not None]
    return min(measured, key=lambda pair: pair[0])[1] if measured else checkpoints[-1]


def averaged(checkpoints: list[Checkpoint], train: TrainConfig) -> list[Checkpoint]:
    """The newest `train.average` that every run with this configuration has saved, or the newest of all where there is
    none yet. Checkpoints of a stop or of a new best do not count, so that a mean depends on neither."""
    regular = [c for c in checkpoints if due(c.step, train.steps, train.checkpoint_every)]
    return regular[-train.average :] or checkpoints[-1:]


def damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the files, in a few words; None where every byte is as it was written."""
    manifest = checkpoint.manifest()
    if manifest is None:
        return f"{MANIFEST} is missing or damaged"
    for name, (size, checksum) in manifest["files"].items():
        path = checkpoint.path / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _sha256(path) != checksum:
            return f"{name} does not hold what was written"
    return None


def newest_intact(directory: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to go on from; None where none was ever finished.

    Damaged ones are passed over and taken away, with one line to `say` for each: going on from the one before
    writes them again. Raises RunError where all are damaged.
    """
    damaged = []
    for checkpoint in reversed(finished(directory)):
        reason = damage(checkpoint)
        if reason is None:
            break
        damaged.append((checkpoint, reason))
    else:
        if not damaged:
            return None
        raise RunError(
            f"no checkpoint in {directory} is intact (step {damaged[0][0].step}: {damaged[0][1]}): "
            "delete that folder to train from the start"
        )
    for bad, reason in damaged:
        say(f"the checkpoint of step {bad.step} is damaged ({reason}): going on from the one before")
        _remove(bad.path)
    return checkpoint


def restore(checkpoint: Checkpoint, abstract_state: Any) -> Any:
    """The saved state, in the tree, shapes and dtypes of `abstract_state` (as from `jax.eval_shape`)."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((checkpoint.path / STATE).absolute(), abstract_state)


def restore_params(checkpoint: Checkpoint, shardings: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """Only the parameters, a nested dict of arrays, on the default device or where `shardings` says of the tree of
    their shapes. Raises RunError where damaged."""
    reason = damage(checkpoint)
    if reason:
        raise RunError(f"the checkpoint {checkpoint.path} is damaged ({reason}): choose another step")
    path = (checkpoint.path / STATE).absolute()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata["params"]
        places = shardings(saved) if shardings else jax.tree.map(lambda x: device, saved)
        shapes = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved, places
        )
        target = {"params": shapes}
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        return checkpointer.restore(path, args=arguments)["params"]


def average_params(
    checkpoints: list[Checkpoint], shardings: Callable[[Any], Any] | None = None
) -> dict[str, Any]:
    """The mean of the parameters of several checkpoints. Raises RunError where one is damaged."""
    total = restore_params(checkpoints[0], shardings)
    for checkpoint in checkpoints[1:]:
        total = jax.tree.map(lambda x, y: x + y, total, restore_params(checkpoint, shardings))
    return jax.tree.map(lambda x: x / len(checkpoints), total)


class CheckpointWriter:
    """Saves in the background, one at a time; keeps the newest `keep` of the `regular` steps, the best and the newest
    of all. Several processes save together, each the parts that it has; the first of them says when a checkpoint is
    finished.

    `save` returns when the arrays are out of the device's way, so that the next step may overwrite them. What
    fails later is raised by the next `save` or by `close`, as a RunError; no finished checkpoint is touched
    before a newer one is finished.
    """

    def __init__(self, directory: Path, keep: int, regular: Callable[[int], bool] = lambda step: True):
        self.directory = directory
        self.keep = keep
        self.regular = regular
        self._orbax = ocp.StandardCheckpointer()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future] | None = None
        # Orbax logs every failed write as pages of traceback before it raises; what it raises is enough.
        logging.getLogger("absl").setLevel(logging.CRITICAL)

    def save(self, state: Any, step: int, notes: Mapping[str, Any], beside: Path | None = None) -> None:
        """Starts to save `state`; `notes` is what the host must remember, as plain JSON, and `beside` a file of which
        a copy is kept, as it is now."""
        self.wait()
        saving = self.directory / f".{step:08}.saving"
        size = sum(array.nbytes for array in jax.tree.leaves(state))
        on_first(lambda: self._make_room(saving, size, beside))
        self._orbax.save((saving / STATE).absolute(), state)
        self._pending = step, self._thread.submit(self._commit, saving, step, notes)

    def _make_room(self, saving: Path, size: int, beside: Path | None) -> None:
        """A folder with a copy of `beside`, on a disk that has room for so many bytes. Raises RunError where there is
        none."""
        try:
            for left in self.directory.glob(".*"):  # by a process that was killed
                shutil.rmtree(left)
            saving.mkdir(parents=True)
            # Said before Orbax finds out, which takes it many lines.
            if shutil.disk_usage(saving).free < size + 2**20:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (it takes {size / 1e6:.0f} MB)")
            if beside:
                shutil.copyfile(beside, saving / beside.name)
        except OSError as error:
            shutil.rmtree(saving, ignore_errors=True)
            raise cannot_write(saving, error) from None

    def busy(self) -> bool:
        """Whether a save is still under way in this process."""
        return self._pending is not None and not self._pending[1].done()

    def wait(self) -> None:
        """Returns when the last save is on the disk. Raises RunError where it failed."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        on_first(lambda: self._finished(step, future))
        future.result()

    def _finished(self, step: int, future: Future) -> None:
        try:
            future.result()
        except (OSError, ValueError) as error:  # ValueError: what TensorStore raises for a failed write
            _clear(self.directory / f".{step:08}.saving")
            code = re.search(r"os_error_code='(\d+)'", str(error))
            raise cannot_write(
                self.directory / f"{step:08}",
                OSError(int(code[1]), os.strerror(int(code[1]))) if code else error,
            ) from None

    def close(self) -> None:
        """Waits for the last save and frees the threads. Raises RunError where that save failed."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def _commit(self, saving: Path, step: int, notes: dict[str, Any]) -> None:
        self._orbax.wait_until_finished()
        if not is_first():
            return
        files = sorted(path for path in saving.rglob("*") if path.is_file())
        checksums = {str(p.relative_to(saving)): (p.stat().st_size, _sha256(p)) for p in files}
        manifest = {"step": step, "notes": notes, "files": checksums}
        write_atomically(saving / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False))
        saving.rename(self.directory / f"{step:08}")
        _sync_folder(self.directory)
        done = finished(self.directory)
        regular = [checkpoint for checkpoint in done if self.regular(checkpoint.step)]
        kept = {best(done), done[-1], *regular[-self.keep :]}
        for checkpoint in done:
            if checkpoint not in kept:
                _remove(checkpoint.path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear(folder: Path) -> None:
    """Deletes what a failed save left. TensorStore's threads may go on writing there for a moment after one of them
    failed, so it is looked at until it stays away; what still comes back after that, the next save deletes."""
    away = 0
    for _ in range(100):
        away = 0 if folder.exists() else away + 1
        if away == 5:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _remove(path: Path) -> None:
    """Deletes a checkpoint; killed half-way, it leaves nothing that looks like one."""
    hidden = path.with_name(f".{path.name}.removed")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _sync_folder(path: Path) -> None:
    """Makes a rename in the folder survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
