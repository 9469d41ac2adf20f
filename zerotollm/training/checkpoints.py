"""Checkpoints: written by Orbax while training continues, committed by a rename, verified by checksums.

    checkpoints/00000250/state/         the whole TrainState (Orbax)
    checkpoints/00000250/metrics.jsonl  a copy of the lines so far
    checkpoints/00000250/manifest.json  step, notes of the host, size and SHA-256 of every file
    checkpoints/.00000500.saving/       unfinished, or left by a killed process: never read (.removed too)

Orbax detects files that are missing or truncated, but reads flipped bits silently. Checksums detect both, and cost
about a millisecond per megabyte.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from zerotollm.errors import RunError, UsageError
from zerotollm.host.atomic_files import cannot_write, write_atomically
from zerotollm.model.build import Params
from zerotollm.sharding.processes import is_first, on_first
from zerotollm.shell import launch
from zerotollm.training.config import TrainConfig, due
from zerotollm.types import Json, PyTree

MANIFEST = "manifest.json"
STATE = "state"

Shardings = Callable[[PyTree], PyTree]
"""(tree of arrays or shapes) -> tree of shardings."""


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint, not yet read or verified."""

    step: int
    path: Path

    def manifest(self) -> Json | None:
        """Return the content of the manifest, or None if it cannot be read."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return manifest if isinstance(manifest, dict) and {"files", "notes"} <= manifest.keys() else None

    def bpb(self) -> float | None:
        """Return the validation bits per byte at this step, or None if they were not measured."""
        validation = (self.manifest() or {}).get("notes", {}).get("validation")
        return validation["bpb"] if validation else None


def finished(directory: Path) -> list[Checkpoint]:
    """Return all finished checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if re.fullmatch(r"\d{8,}", path.name)]
    return sorted((Checkpoint(int(name), directory / name) for name in names), key=lambda c: c.step)


def of_step(directory: Path, step: int) -> Checkpoint:
    """Return the finished checkpoint of a step."""
    return Checkpoint(step, directory / f"{step:08}")


def best(checkpoints: list[Checkpoint]) -> Checkpoint:
    """Return the checkpoint with the lowest validation bits per byte, or the newest if none was measured."""
    measured = [(bpb, c) for c in checkpoints if (bpb := c.bpb()) is not None]
    return min(measured, key=lambda pair: pair[0])[1] if measured else checkpoints[-1]


def averaged(checkpoints: list[Checkpoint], train: TrainConfig) -> list[Checkpoint]:
    """Return the newest `train.average` regular checkpoints, or the newest of all if there is no regular one yet.

    Checkpoints of an interruption or of a new best are not regular: the average depends on neither.
    """
    regular = [c for c in checkpoints if due(c.step, train.steps, train.checkpoint_every)]
    return regular[-train.average :] or checkpoints[-1:]


def damage(checkpoint: Checkpoint) -> str | None:
    """Return what is wrong with the files, or None if every byte is as it was written."""
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
            return f"{name} has another checksum than when it was written"
    return None


def newest_intact(directory: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint to resume from, or None if no checkpoint was ever finished.

    Damaged checkpoints that are newer are deleted, with one line to `say` for each: resuming writes them again. Raises
    RunError if all are damaged.
    """
    damaged: list[tuple[Checkpoint, str]] = []
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
        say(f"the checkpoint of step {bad.step} is damaged ({reason}): resuming from the one before it")
        _remove(bad.path)
    return checkpoint


def restore(checkpoint: Checkpoint, abstract_state: PyTree) -> PyTree:
    """Return the saved state, with the tree, shapes and dtypes of `abstract_state` (as from `jax.eval_shape`)."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((checkpoint.path / STATE).absolute(), abstract_state)


def restore_params(checkpoint: Checkpoint, shardings: Shardings | None = None) -> Params:
    """Return the parameters alone, on the default device or placed by `shardings`. Raises RunError if damaged."""
    reason = damage(checkpoint)
    if reason:
        raise RunError(f"the checkpoint {checkpoint.path} is damaged ({reason}): choose another step")
    path = (checkpoint.path / STATE).absolute()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata["params"]
        placement = shardings(saved) if shardings else jax.tree.map(lambda _: device, saved)
        shapes = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved, placement
        )
        target = {"params": shapes}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        arguments = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
        return checkpointer.restore(path, args=arguments)["params"]


def average_params(checkpoints: list[Checkpoint], shardings: Shardings | None = None) -> Params:
    """Return the mean of the parameters of several checkpoints. Raises RunError if one is damaged."""
    total = restore_params(checkpoints[0], shardings)
    for checkpoint in checkpoints[1:]:
        total = jax.tree.map(lambda x, y: x + y, total, restore_params(checkpoint, shardings))
    return jax.tree.map(lambda x: x / len(checkpoints), total)


class CheckpointWriter:
    """Saves checkpoints in the background, one at a time.

    Keeps the newest `keep` of the `regular` steps, the best and the newest of all. Several processes save together,
    each its own shards; the first process commits.

    `save` returns when the arrays are copied, so that the next step may overwrite them. Later failures are raised by
    the next `save` or by `close`, as a RunError. Finished checkpoints stay until a newer one is finished.
    """

    def __init__(self, directory: Path, keep: int, regular: Callable[[int], bool] = lambda step: True):
        self.directory = directory
        self.keep = keep
        self.regular = regular
        self._orbax = ocp.StandardCheckpointer()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        # Orbax logs every failed write as pages of traceback before it raises: the exception is enough.
        logging.getLogger("absl").setLevel(logging.CRITICAL)

    def save(self, state: PyTree, step: int, notes: Mapping[str, object], beside: Path | None = None) -> None:
        """Start to save `state`, the `notes` of the host (plain JSON), and a copy of the file `beside`."""
        self.wait()
        saving = self.directory / f".{step:08}.saving"
        size = sum(array.nbytes for array in jax.tree.leaves(state))
        on_first(lambda: self._make_room(saving, size, beside))
        self._orbax.save((saving / STATE).absolute(), state)
        self._pending = step, self._thread.submit(self._commit, saving, step, notes)

    def _make_room(self, saving: Path, size: int, beside: Path | None) -> None:
        """Create the folder, with a copy of `beside`. Raises RunError if the disk has no room for `size` bytes."""
        try:
            for leftover in self.directory.glob(".*"):  # of a process that was killed
                shutil.rmtree(leftover)
            saving.mkdir(parents=True)
            # Checked here, since Orbax would report it in many lines.
            if shutil.disk_usage(saving).free < size + 2**20:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({size / 1e6:.0f} MB needed)")
            if beside:
                shutil.copyfile(beside, saving / beside.name)
        except OSError as error:
            shutil.rmtree(saving, ignore_errors=True)
            raise cannot_write(saving, error) from None

    def busy(self) -> bool:
        """Return whether a save is still running in this process."""
        return self._pending is not None and not self._pending[1].done()

    def wait(self) -> None:
        """Wait until the last save is on the disk. Raises RunError if it failed."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        on_first(lambda: self._raise_failure(step, future))
        future.result()

    def _raise_failure(self, step: int, future: Future[None]) -> None:
        try:
            future.result()
        except (OSError, ValueError) as error:  # ValueError: raised by TensorStore for a failed write
            _clear(self.directory / f".{step:08}.saving")
            code = re.search(r"os_error_code='(\d+)'", str(error))
            cause = OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))
            raise cannot_write(self.directory / f"{step:08}", cause) from None

    def close(self) -> None:
        """Wait for the last save and free the threads. Raises RunError if that save failed."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def _commit(self, saving: Path, step: int, notes: Mapping[str, object]) -> None:
        self._orbax.wait_until_finished()
        if not is_first():
            return
        files = sorted(path for path in saving.rglob("*") if path.is_file())
        checksums = {str(p.relative_to(saving)): (p.stat().st_size, _sha256(p)) for p in files}
        manifest = {"step": step, "notes": notes, "files": checksums}
        write_atomically(saving / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False))
        saving.rename(self.directory / f"{step:08}")
        _sync_folder(self.directory)
        checkpoints = finished(self.directory)
        regular = [checkpoint for checkpoint in checkpoints if self.regular(checkpoint.step)]
        keep = {best(checkpoints), checkpoints[-1], *regular[-self.keep :]}
        for checkpoint in checkpoints:
            if checkpoint not in keep:
                _remove(checkpoint.path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear(folder: Path) -> None:
    """Delete the files of a failed save.

    TensorStore's threads may still write for a moment after one of them failed, so delete until the folder stays away.
    The next save deletes anything later.
    """
    absent = 0
    for _ in range(100):
        absent = 0 if folder.exists() else absent + 1
        if absent == 5:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _remove(path: Path) -> None:
    """Delete a checkpoint. Killed half-way, it leaves nothing that looks like one."""
    hidden = path.with_name(f".{path.name}.removed")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _sync_folder(path: Path) -> None:
    """Make a rename in the folder survive a power failure. Windows opens no folders."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def choose(folder: Path, train: TrainConfig, step: int | str) -> list[Checkpoint]:
    """Return the checkpoint of a step, "best" or "last", or those that are averaged for "average".

    Raises UsageError where the folder of checkpoints has none, or not that one.
    """
    kept, run_dir = finished(folder), folder.parent
    if not kept:
        raise UsageError(
            f"{run_dir} has no checkpoint yet: train it with {launch(('run_dir', run_dir))}, or wait for its first one"
        )
    steps = {checkpoint.step: checkpoint for checkpoint in kept}
    if step == "average":
        return averaged(kept, train)
    if step in ("best", "last"):
        return [best(kept) if step == "best" else kept[-1]]
    if step in steps:
        return [steps[step]]
    raise UsageError(
        f"{run_dir} has no checkpoint of step {step}: best, last, average or one of {', '.join(map(str, steps))}"
    )
