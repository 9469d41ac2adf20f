"""generate: continue a text with the trained model, on the terminal as it is drawn."""

import sys
from dataclasses import fields, replace
from pathlib import Path

from zerotollm.actions.config import GenerateOptions
from zerotollm.decoding.config import SamplingConfig
from zerotollm.experiment import Experiment
from zerotollm.output import printable
from zerotollm.run import load
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.session.devices import reading_on_mesh
from zerotollm.validation import validate


def generate(experiment: Experiment, run_dir: Path, options: GenerateOptions) -> str:
    """Write the prompt and its continuation to standard output as they are drawn, and return them.

    A model that labels texts writes the probability of each label of the prompt instead. Raises UsageError for a
    missing run, for an option out of range, and for a prompt longer than the model's context.
    """
    sampling = {field.name: getattr(options, field.name) for field in fields(SamplingConfig)}
    validate(replace(experiment, sample=SamplingConfig(**sampling)))
    cache_compiled_programs(experiment.data)
    # A file gets the exact text; a terminal must not obey control characters that a model may write.
    shown = printable if sys.stdout.isatty() else str
    pieces = []
    with reading_on_mesh(experiment) as placement:
        run = load(run_dir, options.checkpoint, placement.mesh)
        if run.labels:
            (probabilities,) = run.classify([options.prompt])
            text = "\n".join(f"{probability:.4f}\t{label}" for label, probability in probabilities.items())
            sys.stdout.write(f"{shown(text)}\n")
            return text
        for piece in run.stream(**sampling):
            pieces.append(piece)
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(pieces)
