"""From the words of a command line to one action on one experiment. No heavy imports: `--help` is quick."""

import os
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, make_dataclass, replace
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TypeVar

from zerotollm import catalog
from zerotollm.actions import ACTIONS
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import (
    Experiment,
    begun_with,
    describe_type,
    differences,
    field_types,
    on_own_pairs,
    validate,
)
from zerotollm.gpu import prepare_gpu
from zerotollm.run_directory import CONFIG, read_experiment
from zerotollm.scale.config import parse_distributed
from zerotollm.suggest import did_you_mean
from zerotollm.suite import changed, make_suite

USAGE = """\
usage: python launch.py --list
       python launch.py --experiment NAME [ACTION] [--FIELD VALUE ...] [--run-dir DIR] [--debug]

Trains a language model from text and measures it. An experiment is a set of typed fields, and each can
be given another value, as in --train.steps 200.

  --list                      every experiment, its question and its cost
  --experiment NAME           which experiment: a file in experiments/
  --experiment NAME --help    every field with its type, unit and value
  --run-dir DIR               where results are kept; default: runs/NAME
  --distributed auto          one of several processes, as Slurm or MPI says; or by hand:
                              --distributed coordinator=HOST:PORT process=0 of=4
  --debug                     show the traceback of an error

actions:
{actions}

for example:
  python launch.py --experiment base
  python launch.py --experiment base --train.steps 200 --model.num-layers 4
  python launch.py --experiment base generate --prompt "In the beginning"
"""

SWITCHES = ("list", "help", "debug")
VALUES = ("experiment", "run_dir", "distributed")
ALSO = {"init_from": "train.start_from", "with": "beside"}
"""Fields and options by another name: none can be called `with` in Python."""
LISTS = ("only", "beside", "train.mesh", "mesh", "distributed")
"""Options that take several words."""
TOGETHER = ("train", "evaluate", "generate")
"""Actions that several processes do together."""
RUN_MAY_CHANGE = ("sample.", "data.dir", "compute.", "train.mesh")
"""What may be given anew for a run that exists already: nothing that decided what was trained."""

NO_THREAD = "can't start new thread"
"""How Python says that memory, or the number of threads, is at its limit."""

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """A command line taken apart."""

    switches: frozenset[str] = frozenset()
    experiment: str = ""
    run_dir: str = ""
    action: str = ""
    """empty: the experiment's own, see `zerotollm.catalog.default_action`"""
    options: tuple[tuple[str, str], ...] = ()
    """everything else, as (name, value): fields of the experiment and options of the action"""
    distributed: str = ""
    """which of several processes this is, see `zerotollm.scale.config.parse_distributed`"""


def main(arguments: Sequence[str], experiments: Path) -> int:
    """Runs one command line and returns its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    `experiments` is the folder of experiments. What goes wrong is said in one line on stderr; with `--debug`
    the exception passes through.
    """
    try:
        run(split(arguments), experiments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UsageError, RunError, OSError, KeyboardInterrupt, MemoryError, RuntimeError) as error:
        if "--debug" in arguments or (isinstance(error, RuntimeError) and NO_THREAD not in str(error)):
            raise
        line, code = explain(error)
        print(f"error: {line}", file=sys.stderr)
        return code
    return 0


def explain(error: BaseException) -> tuple[str, int]:
    """The one line that says what went wrong, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, MemoryError | RuntimeError):
        what = "another thread" if isinstance(error, RuntimeError) else "what was to be done"
        return (
            f"no host memory is left for {what}: end other programs, or raise the limits (ulimit -a), then run again",
            1,
        )
    message = str(error)
    if isinstance(error, OSError) and error.filename:
        message = f"{error.filename}: {error.strerror}"
    return " ".join(message.split()), getattr(error, "exit_code", 1)


def split(arguments: Iterable[str]) -> Command:
    """Takes a command line apart, in whatever order it is written. Raises UsageError where it cannot.

    A switch stands alone; every other option has exactly one value, `--name value` or `--name=value`, and a list
    goes on to the next option or action; the one word left over is the action, and a second one its text, if it takes
    any.
    """
    switches, values, words, options = set(), {}, [], []
    rest = deque(arguments)
    while rest:
        word = rest.popleft()
        name, equals, value = word.partition("=")
        name = "help" if name == "-h" else name.removeprefix("--").replace("-", "_")
        name = ALSO.get(name, name)
        if not word.startswith("-"):
            words.append(word)
        elif name in SWITCHES and not equals:
            switches.add(name)
        else:
            if not equals:
                value = rest.popleft() if rest else None
            if value is None or (value.startswith("--") and not equals):
                raise UsageError(
                    f"{word} needs a value: {word} VALUE, or {word}=VALUE where it begins with --"
                )
            while name in LISTS and rest and not rest[0].startswith("-") and rest[0] not in ACTIONS:
                value += f" {rest.popleft()}"
            if name in VALUES:
                values[name] = value
            else:
                options.append((name, value))
    action = words[0] if words else ""
    if words and action not in ACTIONS:
        raise UsageError(
            f"unknown action {action!r}: one of {', '.join(ACTIONS)}{did_you_mean(action, ACTIONS)}"
        )
    if len(words) > 1 and ACTIONS[action].word:
        options.append((ACTIONS[action].word, words.pop(1)))
    if len(words) > 1:
        raise UsageError(
            f"unexpected word {words[1]!r} after {action!r}: put a text of several words in quotes"
        )
    return Command(frozenset(switches), action=action, options=tuple(options), **values)


def run(command: Command, experiments: Path) -> None:
    """Does what the command says. Raises UsageError, RunError or OSError."""
    if "list" in command.switches:
        show_list(experiments)
    elif "help" in command.switches and command.experiment:
        show_fields(command, experiments)
    elif "help" in command.switches or command == Command():
        show_usage()
    else:
        act(command, experiments)


def act(command: Command, experiments: Path) -> None:
    """Name -> Experiment -> typed overrides -> action."""
    if command.distributed:
        join_others(command, experiments)
    chosen = command.action or catalog.default_action(experiments, command.experiment)
    action = ACTIONS[chosen]
    if command.distributed and chosen not in TOGETHER:
        raise UsageError(f"--distributed is for {', '.join(TOGETHER)}: start {chosen} in one process")
    fields = field_types(Experiment)
    own = field_types(type(action.options(Experiment()))) if action.options else {}
    for given, _ in command.options:
        if given not in fields and given not in own:
            near = did_you_mean(given, map(option, [*own, *fields, *VALUES, *SWITCHES]))
            raise UsageError(f"unknown option {option(given)}: --help shows all there are{near}")
    overrides = [pair for pair in command.options if pair[0] in fields]
    own_options = [pair for pair in command.options if pair[0] not in fields]

    if command.experiment:
        experiment = catalog.load(experiments, command.experiment)
    elif action.reads_run and command.run_dir:
        experiment = Experiment()  # the run directory itself says what it holds
    elif command.run_dir and (Path(command.run_dir) / CONFIG).exists() and not action.functions:
        experiment = read_experiment(Path(command.run_dir))
    else:
        raise UsageError(f"add --experiment NAME: one of {', '.join(catalog.names(experiments))}")
    if action.suite:
        options = override(action.options(experiment), own_options)
        [variants] = catalog.functions(experiments, command.experiment, ["variants"])
        budget = catalog.function(experiments, command.experiment, "budget")
        if budget is None and "budget" in dict(own_options):
            raise UsageError(
                f"{command.experiment} has no budgets: leave --budget out, and it is done in full"
            )
        options = options if budget else replace(options, budget="full")
        experiment = budget(experiment, options.budget) if budget else experiment
    start = dict(overrides).get("train.start_from", experiment.train.start_from)
    if start and command.experiment and not action.reads_run:
        experiment = begun_with(experiment, read_experiment(Path(start)))
    named, experiment = experiment, override(experiment, overrides)
    if not action.reads_run:
        experiment = on_own_pairs(named, experiment, dict(overrides))
    run_dir = Path(command.run_dir or Path("runs") / experiment.name)
    if action.reads_run:
        experiment = as_trained(run_dir, overrides)
    validate(experiment)

    name = chosen.replace("-", "_")
    function = getattr(import_module(f"zerotollm.actions.{name}"), name)
    if action.suite:
        function(make_suite(experiment, variants, options.only), run_dir, options)
        return
    functions = catalog.functions(experiments, command.experiment, action.functions)
    options = [override(action.options(experiment), own_options)] if action.options else []
    function(experiment, run_dir, *functions, *options)


def join_others(command: Command, experiments: Path) -> None:
    """Meets the other processes, and makes sure that all do the same."""
    place = parse_distributed(command.distributed)
    prepare_gpu()
    from zerotollm.compute import processes

    processes.join(place.coordinator, place.process, place.of)
    # Data may lie elsewhere on each machine.
    options = [pair for pair in command.options if pair[0] != "data.dir"]
    processes.check_same(
        configuration=[
            command.experiment,
            command.run_dir,
            command.action,
            sorted(command.switches),
            options,
        ],
        code=processes.code_version(Path(__file__).parent, experiments),
    )


def option(name: str) -> str:
    """How a field is spelled on the command line: `train.batch_size` is `--train.batch-size`."""
    return "--" + name.replace("_", "-")


def override(default: T, options: Iterable[tuple[str, str]]) -> T:
    """The dataclass with some fields given as text. Raises UsageError where a text is no value of it."""
    import tyro

    types = field_types(type(default))
    for name, value in options:
        # A parser of this field alone: one of all of them takes as long to make for each.
        given = make_dataclass("Given", [("value", types[name])])
        try:
            with redirect_stderr(StringIO()):  # tyro draws a box around its message; ours is one line
                read = tyro.cli(given, args=[f"--value={value}"], config=(tyro.conf.FlagConversionOff,))
            default = changed(default, {name: read.value})
        except SystemExit:
            allowed = describe_type(types[name])
            near = did_you_mean(value, allowed.replace(",", "").split())
            raise UsageError(f"{option(name)} is {value!r}, and must be {allowed}{near}") from None
    return default


def as_trained(run_dir: Path, overrides: Iterable[tuple[str, str]]) -> Experiment:
    """The experiment that a run directory holds. Overrides need not be repeated, nor can they change."""
    if not run_dir.exists():
        raise UsageError(f"{run_dir} does not exist: train first, or name a run directory with --run-dir DIR")
    trained = read_experiment(run_dir)
    # A run is read on one device, wherever it was trained, unless another mesh is asked for now.
    asked = override(replace(trained, train=replace(trained.train, mesh="")), overrides)
    for name, then, now in differences(trained, asked):
        if not name.startswith(RUN_MAY_CHANGE):
            raise UsageError(f"{run_dir} was trained with {name} {then}, not {now}: leave {option(name)} out")
    return asked


def show_usage() -> None:
    width = max(map(len, ACTIONS))
    print(
        USAGE.format(actions="\n".join(f"  {name:{width}}  {a.summary}" for name, a in ACTIONS.items())),
        end="",
    )


def show_list(experiments: Path) -> None:
    """A table of all experiments."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        Column("experiment", no_wrap=True), Column("question", ratio=2), box=SIMPLE_HEAD, expand=True
    )
    table.add_column("time", ratio=1)
    table.add_column("expected", ratio=1)
    for name in catalog.names(experiments):
        about = catalog.about(catalog.docstring(experiments, name))
        table.add_row(name, about.question, about.time, about.expected)
    Console().print(table)


def show_fields(command: Command, experiments: Path) -> None:
    """Everything that can be given another value: the experiment's fields, or the options of an action."""
    import tyro

    experiment = catalog.load(experiments, command.experiment)
    about = ACTIONS[command.action or "train"]
    value = about.options(experiment) if about.options else experiment
    action = f" {command.action}" if command.action not in ("", "train") else ""
    with suppress(SystemExit):
        tyro.cli(
            type(value),
            default=value,
            args=["--help"],
            prog=f"python launch.py --experiment {command.experiment}{action}",
            description=about.summary if action else catalog.docstring(experiments, command.experiment),
            config=(tyro.conf.FlagConversionOff,),
        )
