"""attribute: train without the passages that have a span of a text, and say whether they are why the model knows it."""

from pathlib import Path

from zerotollm.actions.config import AttributeOptions
from zerotollm.console import Console
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.run_directory import ATTRIBUTION
from zerotollm.session.progress import steps_of_seeds
from zerotollm.studies.answers import write_answer
from zerotollm.studies.attribution import KINDS, Attribution, attribute_span, find_target, probability_table
from zerotollm.studies.edited_text import editable_text


def attribute(experiment: Experiment, run_dir: Path, options: AttributeOptions) -> Attribution:
    """Train in memory, show the change of the probability, write `attribution.json`, .png and .html, and return it.

    The directory needs no run, and its run is not changed. Raises UsageError where the options are out of range, the
    training text has no span of the text, or the experiment is no decoder of plain text.
    """
    if not options.text.strip():
        raise UsageError('attribute takes a text that the model wrote: attribute "In the beginning"')
    if options.seeds < 2 or options.passages < 1:
        raise UsageError(
            f"--seeds is {options.seeds} and --passages {options.passages}: expected at least 2 seeds, which give an "
            "interval, and 1 passage"
        )
    text = editable_text(experiment)
    target = find_target(text, options.text, options.passages)
    Console().print(f"the passages stand in {', '.join(dict.fromkeys(target.documents))}", soft_wrap=True)
    seeds = range(experiment.train.seed, experiment.train.seed + options.seeds)
    with steps_of_seeds(len(KINDS) * len(seeds) * experiment.train.steps) as advance:
        answer = attribute_span(text, target, seeds, lambda seed, kind, step: advance(f"seed {seed}, {kind}"))
    write_answer(answer, probability_table(answer), experiment, run_dir, ATTRIBUTION)
    return answer
