"""export: a trained model in a format that other programs read."""

from pathlib import Path

from zerotollm.actions.config import ExportOptions
from zerotollm.console import Console
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.run import load
from zerotollm.session.exported_files import write_export


def export(experiment: Experiment, run_dir: Path, options: ExportOptions) -> Path:
    """Write a checkpoint to a new folder or file and return it. Raises UsageError if the format has no such model."""
    if not options.out:
        raise UsageError("give --out: the folder to write, or with --format gguf the file")
    out = Path(options.out)
    exported = write_export(load(run_dir, options.checkpoint), out, options.format, options.dtype)
    Console().print(exported.sentence, soft_wrap=True)
    return out
