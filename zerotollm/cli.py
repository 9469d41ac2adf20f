"""From the words of a command line to one action on one experiment. No heavy imports: `--help` is quick."""

import math
import os
import re
import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, make_dataclass, replace
from decimal import Decimal
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TypeVar

from zerotollm import catalog
from zerotollm.actions import ACTIONS
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, differences, inherit_model, on_own_pairs
from zerotollm.fields import describe_type, field_types
from zerotollm.host.gpu import prepare_gpu
from zerotollm.output import printable
from zerotollm.run_directory import CONFIG, located, read_experiment
from zerotollm.sharding.config import parse_distributed
from zerotollm.shell import launch, option, with_value
from zerotollm.studies.suite import changed, make_suite
from zerotollm.suggest import did_you_mean, meant_option
from zerotollm.validation import validate

SWITCHES = ("list", "help", "version", "debug")
VALUES = ("experiment", "run_dir", "distributed")
ALSO = {"init_from": "train.start_from", "with": "beside"}
"""Fields and options by another name: none can be called `with` in Python."""
LISTS = ("only", "beside", "train.mesh", "mesh", "distributed")
"""Options that take several words."""
PATHS = ("run_dir", "train.start_from", "beside", "folder", "into", "judge", "out", "api_key_file")
"""Options whose `~` is the home folder, which a shell replaces only where a word begins. Data expands its own."""
ONLY_SHOWN = ("generate", "chat", "plan", "bench-data")
"""Actions that leave no file: where their output is lost, all is."""
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
    options: tuple[tuple[str, str | None], ...] = ()
    """everything else, as (name, value): fields of the experiment and options of the action; None: no value was
    given"""
    distributed: str = ""
    """which of several processes this is, see `zerotollm.sharding.config.parse_distributed`"""

    def asks_for_help(self) -> bool:
        """Whether something is to be shown and nothing done."""
        return bool(self.switches & {"list", "help", "version"}) or self == Command()


def main(arguments: Sequence[str], experiments: Path) -> int:
    """Runs one command line and returns its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    `experiments` is the folder of experiments. What goes wrong is said in one line on stderr; with `--debug`
    the exception passes through.
    """
    try:
        command = split(arguments, catalog.names(experiments))
        run(command, experiments)
        sys.stdout.flush()
    except (UsageError, RunError, OSError, KeyboardInterrupt, MemoryError, RuntimeError) as error:
        if "--debug" in arguments or (isinstance(error, RuntimeError) and NO_THREAD not in str(error)):
            raise
        line, code = explain(error)
        print(f"error: {printable(line)}", file=sys.stderr)
        return code
    lost = getattr(sys.stdout, "lost", None)
    if lost is None or not (command.asks_for_help() or command.action in ONLY_SHOWN):
        return 0
    if not isinstance(lost, BrokenPipeError):  # whoever read the output, `head` perhaps, has seen enough
        print(f"error: standard output: {getattr(lost, 'strerror', lost)}", file=sys.stderr)
    return 1


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


def split(arguments: Iterable[str], experiments: Collection[str] = ()) -> Command:
    """Takes a command line apart, in whatever order it is written. Raises UsageError where it cannot.

    A switch stands alone; every other option has exactly one value, `--name value` or `--name=value`, and a list
    goes on to the next option or action. Of the words left over one may name an experiment of `experiments`, one is
    the action, and one more its text, if it takes any. `list`, `help` and `version` as the first are switches.
    """
    switches, values, words, options = set(), {}, [], []
    rest = deque(arguments)
    while rest:
        word = rest.popleft()
        name, equals, value = word.partition("=")
        name = "help" if name == "-h" else name.removeprefix("--").replace("-", "_")
        name = ALSO.get(name, name)
        if not word.startswith("-") or word == "-":
            words.append(word)
        elif name in SWITCHES:
            if equals:
                raise UsageError(f"{option(name)} takes no value: write it without {'=' + value!r}")
            switches.add(name)
        else:
            if not equals:
                value = rest.popleft() if rest and not rest[0].startswith("--") else None
            while value is not None and name in LISTS and rest and not rest[0].startswith("-"):
                if rest[0] in ACTIONS:
                    break
                value += f" {rest.popleft()}"
            if value is not None and name in PATHS:
                value = re.sub(r"(^|[\s,])(~[^\s,/]*)", lambda m: m[1] + os.path.expanduser(m[2]), value)
            if name not in VALUES:
                options.append((name, value))
            elif value is None or (
                name == "run_dir" and not value
            ):  # "$RUN" where RUN is not set is not the default
                raise UsageError(needs_a_value(name))
            else:
                values[name] = value
    if words and words[0] in SWITCHES:
        switches.add(words.pop(0))
    if "help" in switches and "all" in words:
        words.remove("all")
        switches.add("all")
    if not values.get("experiment"):
        # An action may stand first, unless the word after it is the action's text.
        place = 1 if words[1:] and words[0] in ACTIONS and not ACTIONS[words[0]].text_option else 0
        if words[place:] and words[place] in experiments and words[place] not in ACTIONS:
            values["experiment"] = words.pop(place)
    action = words[0] if words else ""
    if words and action not in ACTIONS:
        what = "action" if values.get("experiment") else "action or experiment"
        near = meant_run(action) or did_you_mean(
            action, ACTIONS if values.get("experiment") else [*ACTIONS, *experiments]
        )
        raise UsageError(f"unknown {what} {action!r}: one of {', '.join(ACTIONS)}{near}")
    if words[1:] and ACTIONS[action].text_option not in ("", *dict(options)):
        if not values.get("run_dir") and (Path(words[1]) / CONFIG).exists():
            raise UsageError(f"{words[1]!r} after {action!r} is a run directory{meant_run(words[1])}")
        options.append((ACTIONS[action].text_option, words.pop(1)))
    if words[1:]:
        near = meant_run(words[1]) or ": put a text of several words in quotes"
        raise UsageError(f"unexpected word {words[1]!r} after {action!r}{near}")
    return Command(frozenset(switches), action=action, options=tuple(options), **values)


def meant_run(word: str) -> str:
    """`; did you mean --run-dir WORD?`, where the word looks like a folder."""
    looks = word.isprintable() and "/" in word and not re.search(r"\s", word)
    return f"; did you mean {with_value('run_dir', word)}?" if looks or (word and Path(word).is_dir()) else ""


def needs_a_value(name: str, kind: type = str) -> str:
    example = "True" if kind is bool else "VALUE"
    return f"{option(name)} needs a value: {option(name)} {example}, or {option(name)}=VALUE where it begins with --"


def run(command: Command, experiments: Path) -> None:
    """Does what the command says. Raises UsageError, RunError or OSError."""
    if not command.asks_for_help():
        act(command, experiments)
        return
    # Imported here: no action needs it.
    from zerotollm import usage

    if "version" in command.switches:
        usage.show_version()
    elif "list" in command.switches:
        usage.show_list(experiments)
    elif command.experiment or command.action or "all" in command.switches:
        usage.show_fields(experiments, command.experiment, command.action, "all" in command.switches)
    else:
        usage.show_usage()


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
    for given, value in command.options:
        if given not in fields and given not in own:
            near = meant_option(given, map(option, [*own, *fields, *ALSO, *VALUES, *SWITCHES]))
            typed = option(given).replace("---", "-")  # of one dash
            raise UsageError(f"unknown option {typed}: --help all shows all there are{near}")
        if value is None:
            raise UsageError(needs_a_value(given, (own | fields)[given]))
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
        experiment = inherit_model(experiment, read_experiment(Path(start)))
    named, experiment = experiment, override(experiment, overrides)
    if not action.reads_run:
        experiment = on_own_pairs(named, experiment, dict(overrides))
    run_dir = Path(command.run_dir or Path("runs") / experiment.name)
    if action.reads_run:
        training = [("run_dir", command.run_dir)] if command.run_dir else []
        if not experiment.data.corpus:
            training.append(("data.corpus", "FILE"))
        experiment = as_trained(run_dir, overrides, launch(command.experiment or "EXPERIMENT", *training))
    validate(experiment)

    suite = make_suite(experiment, variants, options.only) if action.suite else None
    name = chosen.replace("-", "_")
    function = getattr(import_module(f"zerotollm.actions.{name}"), name)
    if suite:
        function(suite, run_dir, options)
        return
    functions = catalog.functions(experiments, command.experiment, action.functions)
    options = [override(action.options(experiment), own_options)] if action.options else []
    function(experiment, run_dir, *functions, *options)


def join_others(command: Command, experiments: Path) -> None:
    """Meets the other processes, and makes sure that all do the same."""
    place = parse_distributed(command.distributed)
    prepare_gpu()
    from zerotollm.sharding import processes

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


def override(default: T, options: Iterable[tuple[str, str]]) -> T:
    """The dataclass with some fields given as text. Raises UsageError where a text is no value of it."""
    import tyro

    types = field_types(type(default))
    for name, value in options:
        value = whole_number(value) if types[name] is int else value
        # A parser of this field alone: one of all of them takes as long to make for each.
        given = make_dataclass("Given", [("value", types[name])])
        try:
            with redirect_stderr(StringIO()):  # tyro draws a box around its message; ours is one line
                read = tyro.cli(given, args=[f"--value={value}"], config=(tyro.conf.FlagConversionOff,))
            if isinstance(read.value, float) and not math.isfinite(read.value):
                raise SystemExit
            default = changed(default, {name: read.value})
        except SystemExit:
            allowed = describe_type(types[name])
            near = did_you_mean(value, allowed.replace(",", "").split())
            raise UsageError(f"{option(name)} is {value!r}, and must be {allowed}{near}") from None
    return default


def whole_number(text: str) -> str:
    """`1e3`, `1k`, `1.5M`, `2B` and `1,000` as digits alone; any other text as it is."""
    match = re.fullmatch(r"(-?\d+(?:,\d{3})*(?:\.\d+)?)(?:[eE]\+?(\d{1,2}))?([kKmMgGbB]?)", text)
    if not match:
        return text
    power = int(match[2] or 0) + {"": 0, "k": 3, "m": 6}.get(match[3].lower(), 9)
    number = Decimal(match[1].replace(",", "")).scaleb(power)
    return str(int(number)) if number == int(number) else text


def as_trained(run_dir: Path, overrides: Iterable[tuple[str, str]], training: str) -> Experiment:
    """The experiment that a run directory holds. Overrides need not be repeated, nor can they change. `training`: the
    command that makes the run."""
    if not run_dir.exists():
        raise UsageError(
            f"{run_dir} does not exist: train first with {training}, or name a run directory with --run-dir DIR"
        )
    trained = read_experiment(run_dir)
    # A run is read on one device, wherever it was trained, unless another mesh is asked for now.
    asked = override(replace(trained, train=replace(trained.train, mesh="")), overrides)
    for name, then, now in differences(trained, asked):
        if not name.startswith(RUN_MAY_CHANGE):
            raise UsageError(f"{run_dir} was trained with {name} {then}, not {now}: leave {option(name)} out")
    return located(run_dir, asked)
