"""What the command line says about itself: usage, experiments, fields."""

import argparse
import ast
import sys
from contextlib import suppress
from importlib.metadata import version
from inspect import getsource
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, get_type_hints

from zerotollm import __version__, catalog
from zerotollm.actions import ACTIONS
from zerotollm.experiment import Experiment
from zerotollm.fields import field_types, flatten
from zerotollm.run_directory import git_commit
from zerotollm.shell import option

USAGE = """\
usage: python launch.py EXPERIMENT [ACTION] [--FIELD VALUE ...] [--run-dir DIR] [--debug]
       python launch.py list

Trains a language model from text and measures it. An experiment is a set of typed fields, and each can
be given another value, as in --train.steps 200.

  list, --list                every experiment, its time and its question
  EXPERIMENT, --experiment NAME
                              which experiment: a file in experiments/
  EXPERIMENT --help           the fields that people change, with type and value; --help all shows every field
  ACTION --help               the options of an action
  --run-dir DIR               where results are kept; default: runs/NAME
  --distributed auto          one of several processes, as Slurm or MPI says; or by hand:
                              --distributed coordinator=HOST:PORT process=0 of=4
  --debug                     show the traceback of an error
  --version                   versions of this program and of what it computes with

actions:
{actions}

for example:
  python launch.py base
  python launch.py base generate "In the beginning"
  python launch.py base explain "In the beginning God created the heavens"
  python launch.py base --train.steps 200 --model.num-layers 2 --run-dir runs/small

"""

MOST_CHANGED = (
    "data.corpus",
    "data.context",
    "data.batch_size",
    "tokenizer.kind",
    "tokenizer.vocab_size",
    "model.num_layers",
    "model.width",
    "model.num_heads",
    "model.dropout",
    "optimizer.kind",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "train.steps",
    "train.start_from",
    "train.lora_rank",
    "train.seed",
    "train.eval_every",
    "train.checkpoint_every",
    "compute.precision",
    "sample.prompt",
)
"""Fields that help shows unless all are asked for."""


def show_usage() -> None:
    width = max(map(len, ACTIONS))
    actions = "\n".join(f"  {name:{width}}  {a.summary}" for name, a in ACTIONS.items())
    sys.stdout.write(USAGE.format(actions=actions) + most_changed(Experiment()))


def show_version() -> None:
    commit = f", commit {commit[:12]}" if (commit := git_commit()) else ""
    python = ".".join(map(str, sys.version_info[:3]))
    sys.stdout.write(f"ZeroToLLM {__version__}{commit}; Python {python}, jax {version('jax')}\n")


def show_list(experiments: Path) -> None:
    """All experiments, one in a line, by group. On a terminal lines are cut to its width."""
    groups: dict[str, list[tuple[str, catalog.Description]]] = {}
    for name in catalog.names(experiments):
        about = catalog.describe(experiments, name)
        groups.setdefault(about.group or "others", []).append((name, about))
    wide = max((len(name) for group in groups.values() for name, _ in group), default=0)
    width = get_terminal_size().columns if sys.stdout.isatty() else 10_000
    first = list(catalog.GROUPS)
    for group in sorted(groups, key=lambda g: (first.index(g) if g in first else len(first), g)):
        sys.stdout.write(f"{group}\n")
        for name, about in groups[group]:
            line = f"  {name:{wide}}  {about.short_time():22}  {about.question}"
            sys.stdout.write(f"{line if len(line) <= width else line[: width - 3] + '...'}\n")


def show_fields(experiments: Path, name: str, action: str, every: bool) -> None:
    """The options of an action, or else fields of an experiment: those that people change, or `every` one."""
    experiment = catalog.load(experiments, name) if name else Experiment()
    about = ACTIONS[action or "train"]
    own = about.options is not None
    words = " ".join(["python launch.py", *filter(None, (name, action))])
    text = about.summary if action not in ("", "train") or not name else catalog.docstring(experiments, name)
    if not (every or own):
        sys.stdout.write(f"usage: {words} [--FIELD VALUE ...]\n\n{text}\n\n{most_changed(experiment)}")
        return
    import tyro

    value = about.options(experiment) if own else experiment
    with suppress(SystemExit):
        tyro.cli(
            type(value),
            default=value,
            args=["--help"],
            prog=words,
            description=text,
            config=(tyro.conf.FlagConversionOff,),
        )


def most_changed(experiment: Experiment) -> str:
    """The fields that people change: name, type, first words of the docstring, value."""
    # Not by tyro, which takes a second to import.
    types, values, said = field_types(Experiment), flatten(experiment), _docstrings(Experiment)
    shown = {"train.start_from": "init_from"}
    width = get_terminal_size().columns
    parser = argparse.ArgumentParser(
        add_help=False,
        usage=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(
            prog, max_help_position=34, width=min(width, 110)
        ),
    )
    group = parser.add_argument_group("fields that people change (--help all shows every field)")
    for name in MOST_CHANGED:
        kind = {int: "INT", float: "FLOAT", str: "STR"}.get(types[name])
        choices = kind or "{" + ",".join(types[name].__args__) + "}"
        value = f"({values[name]})" if values[name] != "" else ""
        text = f"{said[name].partition(';')[0] if kind else ''} {value}"
        group.add_argument(option(shown.get(name, name)), metavar=choices, help=text.replace("%", "%%"))
    return parser.format_help()


def _docstrings(kind: type, prefix: str = "") -> dict[str, str]:
    """Dotted name of every field to the string below it in the source, on one line."""
    found: dict[str, str] = {}
    hints: dict[str, Any] = get_type_hints(kind)
    body = ast.parse(getsource(kind)).body[0].body
    for field, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            name = field.target.id
            if isinstance(below, ast.Expr):
                found[prefix + name] = " ".join(below.value.value.split())
            if hasattr(hints[name], "__dataclass_fields__"):
                found |= _docstrings(hints[name], f"{prefix}{name}.")
    return found
