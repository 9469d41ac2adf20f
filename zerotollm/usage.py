"""What the command line shows of itself: usage, version, experiments, fields. Only `zerotollm.cli` imports this."""

import argparse
import ast
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from shutil import get_terminal_size
from typing import get_args, get_type_hints

from zerotollm import __version__, catalog
from zerotollm.actions import ACTIONS
from zerotollm.experiment import Experiment
from zerotollm.fields import field_types, flatten, is_dataclass_type
from zerotollm.run_directory import git_commit
from zerotollm.shell import LAUNCH, option

USAGE = """\
usage: {launch} EXPERIMENT [ACTION] [--FIELD VALUE ...] [--run-dir DIR] [--debug]
       {launch} list

Trains a language model from text and measures it. An experiment is a set of typed fields. Each field can
be overridden, as in --train.steps 200.

  list, --list                list all experiments with time and question
  EXPERIMENT, --experiment NAME
                              the experiment: a file in experiments/, yours before the built-in ones
  --experiments DIR           folder of your own experiments; default: experiments/ here, if there is one
  EXPERIMENT --help           show the fields that people change, with type and value; --help all shows every field
  ACTION --help               show the options of an action
  --run-dir DIR               directory of the results; default: runs/NAME
  --init-from RUN             start from the parameters of another run: the field train.start_from
  --distributed auto          join the other processes, found by Slurm or MPI; or by hand:
                              --distributed coordinator=HOST:PORT process=0 of=4
  --debug                     show the traceback of an error
  --version                   show the versions of this program and of jax

actions:
{actions}

for example:
  {launch} base
  {launch} base generate "In the beginning"
  {launch} base explain "In the beginning God created the heavens"
  {launch} base --train.steps 200 --model.num-layers 2 --run-dir runs/small

"""

MOST_CHANGED = (
    "data.corpus", "data.context", "data.batch_size", "tokenizer.kind", "tokenizer.vocab_size",
    "model.num_layers", "model.width", "model.num_heads", "model.dropout",
    "optimizer.kind", "optimizer.learning_rate", "optimizer.weight_decay",
    "train.steps", "train.start_from", "train.lora_rank", "train.seed", "train.eval_every", "train.checkpoint_every",
    "compute.precision", "sample.prompt",
)  # fmt: skip
"""Fields that `--help` shows; `--help all` shows every field."""


def show_usage() -> None:
    width = max(map(len, ACTIONS))
    actions = "\n".join(f"  {name:{width}}  {action.summary}" for name, action in ACTIONS.items())
    sys.stdout.write(USAGE.format(launch=LAUNCH, actions=actions) + most_changed(Experiment()))


def show_version() -> None:
    commit = f", commit {commit[:12]}" if (commit := git_commit()) else ""
    python = ".".join(map(str, sys.version_info[:3]))
    sys.stdout.write(f"ZeroToLLM {__version__}{commit}; Python {python}, jax {version('jax')}\n")


def show_list(folders: Sequence[Path]) -> None:
    """Show all experiments by group, one a line. On a terminal lines are cut to its width."""
    groups: dict[str, list[tuple[str, catalog.Description]]] = {group: [] for group in catalog.GROUPS}
    for name, folder in sorted(catalog.places(folders).items()):
        description = catalog.describe(folder, name)
        groups.setdefault(description.group or "others", []).append((name, description))
    name_width = max((len(name) for entries in groups.values() for name, _ in entries), default=0)
    width = get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for group in filter(groups.get, groups):
        sys.stdout.write(f"{group}\n")
        for name, description in groups[group]:
            line = f"  {name:{name_width}}  {description.short_time():22}  {description.question}"
            sys.stdout.write(f"{line if len(line) <= width else line[: width - 3] + '...'}\n")


def show_fields(experiments: Path, name: str, action: str, every: bool) -> None:
    """Show the options of an action, else fields of an experiment: those that people change, or every one."""
    experiment = catalog.load(experiments, name) if name else Experiment()
    entry = ACTIONS[action or "train"]
    command = " ".join([LAUNCH, *filter(None, (name, action))])
    description = catalog.docstring(experiments, name) if name and action in ("", "train") else entry.summary
    if not (every or entry.options):
        usage = f"usage: {command} [--FIELD VALUE ...]\n\n{description}\n\n"
        sys.stdout.write(usage + most_changed(experiment))
        return
    import tyro  # half a second

    value = entry.options(experiment) if entry.options else experiment
    with suppress(SystemExit):
        show = {"prog": command, "description": description, "config": (tyro.conf.FlagConversionOff,)}
        tyro.cli(type(value), default=value, args=["--help"], **show)


def most_changed(experiment: Experiment) -> str:
    """Return help on the fields that people change: name, type, first words of the docstring, value."""
    # With argparse, since importing tyro takes half a second.
    types, values, docs = field_types(Experiment), flatten(experiment), field_docstrings(Experiment)
    width = min(get_terminal_size().columns, 110)
    form = partial(argparse.HelpFormatter, max_help_position=34, width=width)
    parser = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS, formatter_class=form)
    group = parser.add_argument_group("fields that people change (--help all shows every field)")
    for name in MOST_CHANGED:
        kind = {int: "INT", float: "FLOAT", str: "STR"}.get(types[name])
        text = docs[name].partition(";")[0] if kind else ""
        text += f" ({values[name]})" if values[name] != "" else ""
        group.add_argument(
            "--init-from" if name == "train.start_from" else option(name),
            metavar=kind or "{" + ",".join(get_args(types[name])) + "}",
            help=text.strip().replace("%", "%%"),
        )
    return parser.format_help()


def field_docstrings(kind: type, prefix: str = "") -> dict[str, str]:
    """Return dotted names of a dataclass's fields with the string below each in the source, on one line."""
    docstrings: dict[str, str] = {}
    for name, annotation in get_type_hints(kind).items():
        if is_dataclass_type(annotation):
            docstrings |= field_docstrings(annotation, f"{prefix}{name}.")
    for pair in pairwise(ast.walk(ast.parse(getsource(kind)))):
        match pair:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                docstrings[prefix + name] = " ".join(text.split())
    return docstrings
