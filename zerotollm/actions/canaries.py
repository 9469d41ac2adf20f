"""canaries: plant random sequences in the training text, train, and measure how well they are remembered."""

from pathlib import Path

from zerotollm.actions.config import CanariesOptions
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.run_directory import CANARIES
from zerotollm.session.progress import steps_of_seeds
from zerotollm.studies.answers import write_answer
from zerotollm.studies.canaries import Canaries, exposure_table, measure_canaries
from zerotollm.studies.edited_text import editable_text


def canaries(experiment: Experiment, run_dir: Path, options: CanariesOptions) -> Canaries:
    """Train in memory, show the exposure by repetitions, write `canaries.json`, .png and .html, and return it.

    The directory needs no run, and its run is not changed. Raises UsageError where the options are out of range or the
    experiment is no decoder of plain text.
    """
    repetitions = _repetitions(options.repetitions)
    if options.seeds < 1:
        raise UsageError(f"--seeds is {options.seeds}: expected at least 1")
    text = editable_text(experiment)
    seeds = range(experiment.train.seed, experiment.train.seed + options.seeds)
    with steps_of_seeds(len(seeds) * experiment.train.steps) as advance:
        answer = measure_canaries(text, repetitions, seeds, lambda seed, step: advance(f"seed {seed}"))
    write_answer(answer, exposure_table(answer), experiment, run_dir, CANARIES)
    return answer


def _repetitions(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    numbers = [int(word) for word in words if word.isdecimal() and 0 < int(word) <= 100_000]
    if not words or len(numbers) < len(words) or len(set(numbers)) < len(numbers):
        raise UsageError(
            f"--repetitions is {text!r}: expected different whole numbers from 1 to 100,000, such as 1,10,100"
        )
    return numbers
