"""import-model: a checkpoint of the `transformers` library becomes an ordinary run directory."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jax

from zerotollm import run_directory
from zerotollm.actions.config import ImportModelOptions
from zerotollm.console import Console
from zerotollm.data.config import TokenizerConfig
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, to_json
from zerotollm.host.atomic_files import write_atomically
from zerotollm.interop.folder import read_model, read_params, read_tokenizer
from zerotollm.model.build import Params
from zerotollm.run import Run, load
from zerotollm.training.checkpoints import CheckpointWriter
from zerotollm.validation import validate


def import_model(experiment: Experiment, run_dir: Path, options: ImportModelOptions) -> Run:
    """Write a run directory with one checkpoint, of step 0, that holds the model of a folder; return the run.

    Data, optimizer and sampling are the experiment's. The name is that of the run directory, and the context is at most
    the model's. Raises UsageError, naming file, field or tensor, for an unsupported model, for a folder that
    contradicts its config.json, and for a run directory that is not empty.
    """
    if not options.folder:
        message = "give --folder: config.json, safetensors and tokenizer.json, as transformers saves them"
        raise UsageError(message)
    if run_dir == Path("runs") / experiment.name:
        message = f"{run_dir} is the run directory of {experiment.name} itself: give another --run-dir"
        raise UsageError(message)
    if run_dir.is_dir():
        _refuse_unless_empty(run_dir)
    folder = Path(options.folder)
    family, file, model = read_model(folder)
    tokenizer = read_tokenizer(folder, family, file, model)
    imported = replace(
        experiment,
        name=run_dir.name,
        model=model,
        data=replace(experiment.data, context=min(experiment.data.context, model.max_length)),
        tokenizer=TokenizerConfig("pretrained", max(5, tokenizer.vocab_size), byte_fallback=False),
        train=replace(experiment.train, start_from="", average=1),
    )
    validate(imported)
    params = read_params(folder, family, model)
    with run_directory.locked(run_dir):
        _refuse_unless_empty(run_dir)  # another process may have written there meanwhile
        try:
            tokenizer.save(run_dir / run_directory.TOKENIZER)
            environment = json.dumps(run_directory.environment(), indent=2)
            write_atomically(run_dir / run_directory.ENVIRONMENT, environment)
            with closing(CheckpointWriter(run_dir / run_directory.CHECKPOINTS, keep=1)) as writer:
                notes = {"imported": f"{family.name}, {folder.name}", "validation": None}
                writer.save({"params": _move_to_device(params)}, 0, notes)
            # Written last: a directory without it is no run.
            write_atomically(run_dir / run_directory.CONFIG, to_json(imported))
        except BaseException:
            shutil.rmtree(run_dir, ignore_errors=True)
            raise
    run = load(run_dir)
    Console().print(f"{family.name} from {folder}: {run!r}", soft_wrap=True)
    return run


def _move_to_device(params: Params) -> Params:
    """Return the parameters as arrays of jax, and empty `params` on the way: a large model is not in memory twice."""
    moved = {}
    for name in list(params):
        value = params.pop(name)
        moved[name] = _move_to_device(value) if isinstance(value, dict) else jax.device_put(value)
    return moved


def _refuse_unless_empty(run_dir: Path) -> None:
    if any(path.name != run_directory.LOCK for path in run_dir.iterdir()):
        raise UsageError(f"{run_dir} exists already and is not empty: give another --run-dir")
