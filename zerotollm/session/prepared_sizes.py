"""The size of a corpus in tokens, noted where it is prepared, so that a plan knows it without reading a text.

A note is a small file below `data.dir`. It is of the last preparation: a text that has changed since gets a new one
when it is prepared again.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from zerotollm.data.cache_folder import data_directory
from zerotollm.data.feed import Feed
from zerotollm.experiment import Experiment, makes_tokenizer
from zerotollm.host.atomic_files import write_atomically


class PreparedSize(NamedTuple):
    """Tokens, or labels, to predict."""

    tokens: int
    """in an epoch of training"""
    tokens_per_step: float
    """in a training step, on average"""

    def epochs(self, experiment: Experiment) -> float:
        """Return how often the experiment reads the corpus."""
        train = experiment.train.steps * (1 - experiment.data.replay)
        return train * self.tokens_per_step / self.tokens


def note_size(experiment: Experiment, feed: Feed) -> None:
    """Write the note. Where that is not possible there is none."""
    path = _note(experiment)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps([feed.tokens, feed.tokens_per_step]) + "\n")


def prepared_size(experiment: Experiment) -> PreparedSize | None:
    """Return what was noted when the same corpus was last prepared in the same way, or None."""
    with suppress(OSError, ValueError, TypeError):
        return PreparedSize(*json.loads(_note(experiment).read_text("utf-8")))
    return None


def _note(experiment: Experiment) -> Path:
    """Return the file of a note. A corpus of files has one in each working directory."""
    data = replace(experiment.data, dir="")
    key = [
        asdict(data),
        asdict(experiment.tokenizer),
        experiment.train.objective,
        "" if makes_tokenizer(experiment) else experiment.train.start_from,
    ]
    key += [experiment.model.architecture, asdict(experiment.code), os.getcwd()]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return data_directory(experiment.data) / "sizes" / f"{digest}.json"
