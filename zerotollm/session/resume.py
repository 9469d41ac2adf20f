"""The state that training begins with: fresh, initialized from another run, or of the newest intact checkpoint."""

from pathlib import Path
from typing import cast

import numpy as np

from zerotollm import run_directory
from zerotollm.errors import RunError
from zerotollm.session.compiled_training import CompiledTraining
from zerotollm.session.progress import Display
from zerotollm.session.run_log import Notes
from zerotollm.session.warm_start import WarmStart
from zerotollm.sharding.processes import on_first
from zerotollm.sharding.rules import place_tree
from zerotollm.training import checkpoints
from zerotollm.training.lora import partition
from zerotollm.training.parameter_transfer import fingerprint
from zerotollm.training.step import TrainState


def initialize_or_resume(
    training: CompiledTraining, start: WarmStart, run_dir: Path, display: Display
) -> tuple[TrainState, int, Notes]:
    """Return the state, the steps it has done, and what its checkpoint remembers.

    Raises RunError where all checkpoints are damaged, or the text or the run initialized from has changed since.
    """
    train, mesh = training.experiment.train, training.placement.mesh
    directory = run_dir / run_directory.CHECKPOINTS
    newest = on_first(lambda: getattr(checkpoints.newest_intact(directory, display.say), "step", None))
    frozen = None
    if start.params is not None and training.abstract_state.frozen is not None:
        _, frozen = partition(start.params, train.trainable)
    new: Notes = {
        "text": training.feed.fingerprint,
        "frozen": fingerprint(frozen),
        "before": None,
        "losses": [],
        "validation": None,
        "step_seconds": 0.0,
        "seconds": 0.0,
        "cpu_seconds": 0.0,
    }
    if newest is None:
        if start.run:
            display.say(f"initialized from {start.run!r}")
        params = start.params and place_tree(start.params, mesh)
        return training.init(np.uint32(train.seed), params), 0, new
    checkpoint = checkpoints.of_step(directory, newest)
    # Earlier versions noted less.
    notes = cast(Notes, {**new, "frozen": None, **(checkpoint.manifest() or {})["notes"]})
    if notes["text"] != new["text"]:
        raise RunError(
            f"the text of {training.experiment.data.corpus} has changed since {run_dir} was begun: "
            "bring the text back, or train anew with another --run-dir"
        )
    if notes["frozen"] != new["frozen"]:
        raise RunError(
            f"{train.start_from} has changed since {run_dir} was initialized from it: bring it back, or "
            "train anew with another --run-dir"
        )
    saved = checkpoints.restore(checkpoint, training.abstract_state.saved())
    state = training.abstract_state._replace(**saved, frozen=frozen and place_tree(frozen, mesh))
    return state, newest, notes
