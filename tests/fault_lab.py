"""A small run to do harm to, and what of two runs is compared. See `faults.py`."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
STEPS, EVERY = 60, 10
TIMEOUT = 900


@dataclass
class Lab:
    """A folder with a text, and the run that was left alone."""

    folder: Path
    draw: random.Random

    def fields(self, **changed: object) -> list[str]:
        values = {
            "data.corpus": self.folder / "text.txt",
            "data.dir": self.folder / "data",
            "data.context": 16,
            "data.batch_size": 4,
            "tokenizer.vocab_size": 270,
            "model.num_layers": 1,
            "model.width": 16,
            "model.num_heads": 2,
            "model.dropout": 0.1,
            "model.token_shift": 0,
            "train.steps": STEPS,
            "train.eval_every": 2 * EVERY,
            "train.sample_every": 0,
            "train.checkpoint_every": EVERY,
            "train.log_every": 1,
            "sample.max_tokens": 4,
        } | changed
        return [f"--{name}={value}" for name, value in values.items()]

    def start(
        self,
        run_dir: Path,
        *words: str,
        launcher: tuple[str, ...] = (),
        env: dict | None = None,
        quiet: bool = False,
        **options,
    ) -> subprocess.Popen:
        launch = [*launcher, sys.executable, "launch.py", "--experiment", "base", "--run-dir", str(run_dir)]
        return subprocess.Popen(
            [*launch, *words],
            cwd=ROOT,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled")} | (env or {}),
            stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def finish(self, run_dir: Path, *words: str, **options) -> tuple[int, str]:
        process = self.start(run_dir, *(words or self.fields()), **options)
        out, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, out

    def stopped(self, name: str) -> Path:
        """A copy of a run that was stopped half-way."""
        source = self.folder / "half"
        if not source.exists():
            process = self.start(source, *self.fields())
            wait_for(process, lambda: step_of(source) > STEPS // 2)
            process.terminate()
            process.communicate(timeout=TIMEOUT)
        target = self.folder / name
        shutil.copytree(source, target)
        return target


def write_text(lab: Lab) -> None:
    """What the runs of a lab learn: words of the licence."""
    words = (ROOT / "LICENSE").read_text().split()
    paragraphs = [" ".join(lab.draw.choices(words, k=80)) for _ in range(60)]
    (lab.folder / "text.txt").write_text("\n\n".join(paragraphs))


def wait_for(process: subprocess.Popen, moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and not moment() and time.monotonic() < deadline:
        time.sleep(0.002)


def lines_of(run_dir: Path) -> list[dict]:
    path, lines = run_dir / "metrics.jsonl", []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            lines.append({name: value for name, value in json.loads(line).items() if name != "timing"})
        except json.JSONDecodeError:
            break
    return lines


def step_of(run_dir: Path) -> int:
    return max((line["step"] for line in lines_of(run_dir)), default=0)


def saved_step(run_dir: Path) -> int:
    names = [path.name for path in (run_dir / "checkpoints").glob("[0-9]*")]
    return max(map(int, names), default=0)


def arrays_of(run_dir: Path) -> dict[str, bytes]:
    """All arrays of the last checkpoint."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    path = run_dir / "checkpoints" / f"{STEPS:08}" / "state"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # whatever number of processes wrote it
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path.absolute()).item_metadata
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
        tree = checkpointer.restore(path.absolute(), target)
    return {
        jax.tree_util.keystr(name): np.asarray(x).tobytes()
        for name, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def same_run(run_dir: Path, expected: Path) -> bool:
    if not (run_dir / "summary.json").exists() or lines_of(run_dir) != lines_of(expected):
        return False
    return arrays_of(run_dir) == arrays_of(expected)
