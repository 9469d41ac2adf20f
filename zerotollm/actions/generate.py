"""generate: continue a text with the trained model, on the terminal as it is drawn."""

import sys
from dataclasses import replace
from pathlib import Path

from zerotollm.actions.config import GenerateOptions
from zerotollm.decoding.config import SamplingConfig
from zerotollm.experiment import Experiment
from zerotollm.output import printable
from zerotollm.session.devices import reading_on_mesh
from zerotollm.validation import validate


def generate(experiment: Experiment, run_dir: Path, options: GenerateOptions) -> str:
    """Writes the prompt and its continuation to standard output as they come, and returns them; of a model that labels
    texts, the probability of each label of the prompt.

    Raises UsageError where there is none, where an
    option is out of range, and where the prompt is longer than the model's context.
    """
    sampling = {name: getattr(options, name) for name in SamplingConfig.__dataclass_fields__}
    validate(replace(experiment, sample=SamplingConfig(**sampling)))
    # Imported here: nobody should wait for jax to hear that an option is out of range.
    from zerotollm.run import load
    from zerotollm.session.compilation_cache import cache_compiled_programs

    cache_compiled_programs(experiment.data)
    # A file gets the exact text; a terminal must not obey control characters that a model may write.
    shown = printable if sys.stdout.isatty() else str
    pieces = []
    with reading_on_mesh(experiment) as placement:
        run = load(run_dir, options.checkpoint, placement.mesh)
        if run.labels:
            (found,) = run.classify([options.prompt])
            text = "\n".join(f"{probability:.4f}\t{label}" for label, probability in found.items())
            sys.stdout.write(f"{shown(text)}\n")
            return text
        for piece in run.stream(**sampling):
            pieces.append(piece)
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(pieces)
