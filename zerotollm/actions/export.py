"""export: a trained model in a format that other programs read."""

from pathlib import Path

from zerotollm import run_directory
from zerotollm.actions.config import ExportOptions
from zerotollm.console import Console
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.interop.card import model_card
from zerotollm.interop.huggingface import family_of, write_folder
from zerotollm.run import load


def export(experiment: Experiment, run_dir: Path, options: ExportOptions) -> Path:
    """Write a checkpoint to a new folder and return the folder. Raises UsageError if no model family is this model."""
    if not options.out:
        raise UsageError("give --out: the folder to write")
    run = load(run_dir, options.checkpoint)
    run.require_built_in_model("export")
    family, out = family_of(run.model_config), Path(options.out)
    card = model_card(
        family,
        run.model_config,
        name=experiment.name,
        corpus=experiment.data.corpus,
        step=run.step,
        parameters=run.num_parameters,
        bpb=run.validation_bpb,
        summary=run_directory.read_summary(run_dir),
    )
    write_folder(out, run.params, run.model_config, run.tokenizer, card)
    Console().print(
        f"{out}: {family.architecture}, {run.num_parameters:,} parameters of step {run.step:,} in float32; "
        "transformers loads it with from_pretrained",
        soft_wrap=True,
    )
    return out
