"""generate: continue a text with the trained model, on the terminal as it is drawn."""

from dataclasses import fields, replace
from pathlib import Path

from zerotollm.actions.config import GenerateOptions
from zerotollm.decoding.config import SamplingConfig
from zerotollm.experiment import Experiment
from zerotollm.output import write_pieces
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
    with reading_on_mesh(experiment) as placement:
        run = load(run_dir, options.checkpoint, placement.mesh)
        if run.labels:
            (probabilities,) = run.classify([options.prompt])
            lines = (f"{probability:.4f}\t{label}" for label, probability in probabilities.items())
            return write_pieces(["\n".join(lines)])
        return write_pieces(run.stream(**sampling))
