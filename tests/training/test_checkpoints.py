"""A checkpoint is whole or not there; damage is found; what is saved is what was passed to `save`."""

import itertools
import json
import shutil
import subprocess
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.errors import RunError
from zerotollm.training import checkpoints
from zerotollm.training.checkpoints import CheckpointWriter
from zerotollm.training.config import TrainConfig


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any


def make_state(step: int, width: int = 64) -> State:
    w = jax.random.normal(jax.random.key(step), (width, width))
    return State(jnp.int32(step), {"layer": {"w": w, "b": w[0]}}, ({"mu": -w}, ()))


def same(a: Any, b: Any) -> bool:
    same_tree = jax.tree.structure(a) == jax.tree.structure(b)
    return same_tree and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def save_all(directory: Path, scores: dict[int, float | None], keep: int = 2) -> None:
    writer = CheckpointWriter(directory, keep)
    for step, bpb in scores.items():
        notes = {"validation": None if bpb is None else {"bpb": bpb}}
        writer.save(make_state(step), step, notes)
    writer.close()


def steps(directory: Path) -> list[int]:
    return [c.step for c in checkpoints.finished(directory)]


def largest_file(checkpoint: checkpoints.Checkpoint) -> Path:
    return max((p for p in checkpoint.path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_restore_returns_the_saved_state_even_if_it_is_donated_at_once(tmp_path):
    @partial(jax.jit, donate_argnums=0)
    def overwrite(state):
        return jax.tree.map(lambda x: x * 0, state)

    state = make_state(7, width=512)
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.save(state, 7, {"losses": [0.1, 1 / 3]})
    jax.block_until_ready(overwrite(state))
    writer.close()
    (checkpoint,) = checkpoints.finished(tmp_path)
    restored = checkpoints.restore(checkpoint, jax.eval_shape(lambda: make_state(0, width=512)))
    assert same(restored, expected)
    assert checkpoint.manifest()["notes"] == {"losses": [0.1, 1 / 3]}
    assert same(checkpoints.restore_params(checkpoint), expected.params)


def test_keeps_the_newest_and_the_best(tmp_path):
    save_all(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 2.5})
    assert steps(tmp_path) == [2, 4, 5]
    assert checkpoints.best(checkpoints.finished(tmp_path)).step == 2


def test_best_is_the_oldest_of_equals_or_the_newest_if_none_is_measured(tmp_path):
    def made(scores: dict[int, float | None]) -> list[checkpoints.Checkpoint]:
        for step, bpb in scores.items():
            path = checkpoints.of_step(tmp_path, step).path
            path.mkdir(exist_ok=True)
            notes = {"notes": {"validation": bpb and {"bpb": bpb}}, "files": {}}
            (path / "manifest.json").write_text(json.dumps(notes))
        return [checkpoints.of_step(tmp_path, step) for step in scores]

    assert checkpoints.best(made({1: 3.0, 2: 2.0, 3: 2.0, 4: None})).step == 2
    assert checkpoints.best(made({1: None, 2: None})).step == 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(flip, id="one bit flipped"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), id="cut short"),
        pytest.param(lambda path: path.unlink(), id="missing"),
    ],
)
@pytest.mark.parametrize("file", ["largest", "manifest.json"])
def test_a_damaged_checkpoint_is_skipped_with_a_message(tmp_path, harm, file):
    save_all(tmp_path, {1: None, 2: None})
    newest = checkpoints.finished(tmp_path)[-1]
    harm(largest_file(newest) if file == "largest" else newest.path / file)
    said: list[str] = []
    assert checkpoints.newest_intact(tmp_path, said.append).step == 1
    assert len(said) == 1
    assert "step 2 is damaged" in said[0]
    assert "\n" not in said[0]
    assert steps(tmp_path) == [1]  # so that saving step 2 again meets no old one


@pytest.mark.parametrize("key", ["files", "notes"])
def test_a_manifest_with_a_damaged_key_is_damaged(tmp_path, key):
    save_all(tmp_path, {1: None, 2: None})
    path = checkpoints.finished(tmp_path)[-1].path / "manifest.json"
    path.write_text(path.read_text("utf-8").replace(f'"{key}"', f'"{key[:-1]}w"'), "utf-8")
    assert checkpoints.newest_intact(tmp_path, lambda line: None).step == 1


def test_if_all_checkpoints_are_damaged_training_does_not_restart_silently(tmp_path):
    save_all(tmp_path, {1: None, 2: None})
    for checkpoint in checkpoints.finished(tmp_path):
        flip(largest_file(checkpoint))
    with pytest.raises(RunError, match=r"no checkpoint .* is intact"):
        checkpoints.newest_intact(tmp_path, lambda line: None)
    assert steps(tmp_path) == [1, 2]
    with pytest.raises(RunError, match="is damaged"):
        checkpoints.restore_params(checkpoints.finished(tmp_path)[0])


def test_an_unfinished_save_is_never_read_and_is_deleted(tmp_path):
    save_all(tmp_path, {1: None})
    shutil.copytree(tmp_path / "00000001", tmp_path / ".00000002.saving")
    assert checkpoints.newest_intact(tmp_path, print).step == 1
    save_all(tmp_path, {2: None})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000002"]


def test_no_checkpoint_yet(tmp_path):
    assert checkpoints.newest_intact(tmp_path / "none", print) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax, in its threads
@pytest.mark.parametrize("found", ["before writing", "while writing"])
def test_a_full_disk_is_a_one_line_error_and_loses_nothing(tmp_path, monkeypatch, found):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        writer = CheckpointWriter(disk / "checkpoints", keep=2)
        writer.save(make_state(1, width=256), 1, {})
        if found == "while writing":  # another process took the room
            monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**40))
        writer.wait()
        with pytest.raises(RunError, match="No space left") as caught, closing(writer):
            writer.save(make_state(2, width=1024), 2, {})
        assert "\n" not in str(caught.value)
        assert checkpoints.newest_intact(disk / "checkpoints", print).step == 1
        # A folder that TensorStore's threads bring back later, on a machine as busy as that, is hidden.
        assert sorted(p.name for p in (disk / "checkpoints").glob("[!.]*")) == ["00000001"]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_failed_save_is_deleted_although_its_threads_still_write(tmp_path, monkeypatch):
    folder = tmp_path / ".00000002.saving"
    folder.mkdir()
    writes = iter(range(6))

    def while_it_waits(_):
        for n in itertools.islice(writes, 1):
            (folder / "state").mkdir(parents=True, exist_ok=True)
            (folder / "state" / str(n)).write_bytes(b"0")

    monkeypatch.setattr(checkpoints.time, "sleep", while_it_waits)
    checkpoints._clear(folder)
    assert next(writes, None) is None, "it did not wait for the last of them"
    assert not folder.exists()


def test_a_directory_that_cannot_be_written_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    writer = CheckpointWriter(tmp_path / "file" / "checkpoints", keep=2)
    with pytest.raises(RunError, match="cannot write"):
        writer.save(make_state(1), 1, {})
    writer.close()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_save_needs_the_size_of_the_state_and_a_mebibyte(tmp_path, monkeypatch, missing):
    size = sum(x.nbytes for x in jax.tree.leaves(make_state(1)))
    room = SimpleNamespace(free=size + 2**20 - missing)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: room)
    beside = tmp_path / "metrics.jsonl"
    beside.write_text("lines")
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=2)
    with closing(writer):
        if not missing:
            writer.save(make_state(1), 1, {}, beside=beside)
            writer.wait()
            assert not writer.busy()
            (made,) = checkpoints.finished(writer.directory)
            assert (made.path / "metrics.jsonl").read_text() == "lines"
            return
        with pytest.raises(RunError, match="No space left on device"):
            writer.save(make_state(1), 1, {}, beside=beside)
    assert list(writer.directory.iterdir()) == [], "what was begun is taken away"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_average_is_the_mean_of_the_checkpoints(tmp_path, number):
    save_all(tmp_path, dict.fromkeys(range(1, number + 1)), keep=number)
    found = checkpoints.average_params(checkpoints.finished(tmp_path))
    for name in ("w", "b"):
        states = [make_state(step).params["layer"][name] for step in range(1, number + 1)]
        np.testing.assert_allclose(found["layer"][name], np.mean(states, axis=0), rtol=1e-5, atol=1e-6)


def test_checkpoints_of_an_interruption_are_neither_averaged_nor_counted(tmp_path):
    def made(*steps: int) -> list[checkpoints.Checkpoint]:
        return [checkpoints.of_step(tmp_path, step) for step in steps]

    def averaged(found, every: int, average: int) -> list[int]:
        train = TrainConfig(steps=22, checkpoint_every=every, average=average)
        return [c.step for c in checkpoints.averaged(found, train)]

    assert averaged(made(5, 7, 10, 13, 15), 5, 2) == [10, 15]
    assert averaged(made(5, 20, 22), 5, 2) == [20, 22], "the end counts"
    assert averaged(made(3, 8, 22), 0, 3) == [22], "only the end is saved where nothing stops it"
    assert averaged(made(3, 4), 5, 2) == [4]
    writer = CheckpointWriter(tmp_path, keep=2, regular=lambda step: step % 5 == 0)
    for step in (5, 7, 10, 13, 14):
        writer.save(make_state(step), step, {"validation": {"bpb": 1.0 if step == 7 else 2.0}})
    writer.close()
    assert steps(tmp_path) == [5, 7, 10, 14], "two of every five, the best, the newest"


def test_the_manifest_is_plain_json(tmp_path):
    save_all(tmp_path, {3: 1.5})
    manifest = json.loads((tmp_path / "00000003" / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert manifest["notes"] == {"validation": {"bpb": 1.5}}
    assert all(size >= 0 and len(checksum) == 64 for size, checksum in manifest["files"].values())
