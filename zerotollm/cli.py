"""The command line: from words to one action on one experiment. No heavy imports, which would slow down `--help`."""

import logging
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from zerotollm import catalog, usage
from zerotollm.actions import ACTIONS, Action
from zerotollm.actions.config import AblateOptions
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, differences, has_other_pairs, inherit_model, on_own_pairs
from zerotollm.fields import field_types, flatten, is_valid, wrong_type
from zerotollm.host.gpu import prepare_gpu
from zerotollm.host.memory_limit import check_libraries
from zerotollm.host.stop_signals import StoppedError
from zerotollm.output import printable
from zerotollm.own_code import open_folder
from zerotollm.run_directory import CONFIG, SUMMARY, located, read_experiment
from zerotollm.sharding.config import parse_distributed
from zerotollm.shell import CHECKOUT, launch, option, with_value
from zerotollm.studies.suite import changed, make_suite
from zerotollm.suggest import did_you_mean, meant_option
from zerotollm.validation import validate

SWITCHES = ("list", "help", "version", "debug")
VALUES = ("experiment", "experiments", "run_dir", "distributed")
ALIASES = {"init_from": "train.start_from", "with": "beside"}
"""Other names of fields and options. (`with` is a keyword of Python.)"""
LISTS = ("only", "beside", "train.mesh", "mesh", "distributed")  # options that take several words
PATHS = (
    "experiments", "run_dir", "train.start_from", "beside", "folder", "into", "judge", "out", "api_key_file",
)  # fmt: skip
"""Options in which `~` means the home folder even where a shell keeps it. Paths of data are expanded by `data`."""
WITHOUT_FILES = ("generate", "chat", "plan", "promises", "bench-data")
"""Actions that write no file: without standard output their result is lost."""
DISTRIBUTED = ("train", "evaluate", "generate")  # actions that several processes can do together
RUN_MAY_CHANGE = ("sample.", "data.dir", "compute.", "train.mesh")
"""Prefixes of the fields that may be overridden for an existing run: they did not affect its training. So may
data.test, the files of the final test."""

NO_THREAD = "can't start new thread"
"""Python's message if memory or the number of threads is at its limit."""

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    switches: frozenset[str] = frozenset()
    experiment: str = ""
    run_dir: str = ""
    action: str = ""  # empty: the default action of the experiment
    options: tuple[tuple[str, str | None], ...] = ()
    """(name, value) of all other options: fields of the experiment and options of the action; None: without value"""
    distributed: str = ""  # see `zerotollm.sharding.config.parse_distributed`
    experiments: str = ""  # folder of the user's experiments

    def only_shows(self) -> bool:
        """Return whether the command prints information and runs no action."""
        return bool(self.switches & {"list", "help", "version"}) or self == Command()


def main(arguments: Sequence[str], experiments: Path) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    `experiments` is the folder of the built-in experiments.
    """
    try:
        folders = catalog.folders(_own_folder(arguments), experiments.resolve())
        command = split(arguments, catalog.places(folders))
        run(command, folders)
        sys.stdout.flush()
    except (
        UsageError,
        RunError,
        OSError,
        KeyboardInterrupt,
        MemoryError,
        RuntimeError,
        ImportError,
    ) as error:
        known = (
            not isinstance(error, RuntimeError | ImportError) or NO_THREAD in str(error) or _missing(error)
        )
        if "--debug" in arguments or not known:
            raise
        line, code = describe_error(error)
        asked = isinstance(error, StoppedError)  # by a person or a scheduler: nothing is wrong
        print(printable(line) if asked else f"error: {printable(line)}", file=sys.stderr)
        return code
    lost = getattr(sys.stdout, "lost", None)
    if lost is None or not (command.only_shows() or command.action in WITHOUT_FILES):
        return 0
    if not isinstance(lost, BrokenPipeError):  # a reader such as `head` has seen enough
        print(f"error: standard output: {getattr(lost, 'strerror', lost)}", file=sys.stderr)
    return 1


def describe_error(error: BaseException) -> tuple[str, int]:
    """Return the line to print for an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if package := _missing(error):
        pip = f"{sys.executable} -m pip install"
        install = f"{pip} -r requirements.txt" if CHECKOUT else f"{pip} {package}"
        return (
            f"{package} is not installed for this Python: {install}, or activate the environment that has it",
            1,
        )
    if isinstance(error, MemoryError | RuntimeError):
        where = " for another thread" if isinstance(error, RuntimeError) else ""
        advice = "end other programs, or raise the limits (ulimit -a), then run again"
        return f"out of host memory{where}: {advice}", 1
    message = str(error)
    if isinstance(error, OSError) and error.filename:
        message = f"{error.filename}: {error.strerror}"
    return " ".join(message.split()), getattr(error, "exit_code", 1)


def _missing(error: BaseException) -> str:
    """Return the package that an import did not find, other than a part of this one; else nothing."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return "" if package in ("zerotollm", "experiments") else package


def _own_folder(arguments: Sequence[str]) -> str:
    """Return the value of --experiments, which `split` must know beforehand: its files are names of experiments."""
    value = ""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, after = word.partition("=")
        if name == "--experiments":
            value = after if equals else following
    return value


def split(arguments: Iterable[str], experiments: Collection[str] = ()) -> Command:
    """Parse a command line, in any order. Raises UsageError if it is malformed.

    A switch has no value; every other option has one, `--name value` or `--name=value`, and a list extends to the
    next option or action. The other words are an experiment out of `experiments`, an action, and its text if it
    takes one. `list`, `help` and `version` as the first word are switches.
    """
    switches, values, words, options = set(), {}, [], []
    rest = deque(arguments)
    while rest:
        word = rest.popleft()
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        name = "help" if name == "-h" else name.removeprefix("--").replace("-", "_")
        name = ALIASES.get(name, name)
        if name in SWITCHES:
            if equals:
                raise UsageError(f"{option(name)} takes no value: write it without {'=' + value!r}")
            switches.add(name)
            continue
        if not equals:
            value = rest.popleft() if rest and not rest[0].startswith("--") else None
        if value is not None:
            value = _complete(name, value, rest)
        if name not in VALUES:
            options.append((name, value))
        elif value is None or (name == "run_dir" and not value):  # "$RUN" of an unset RUN is not the default
            raise _needs_value(name)
        else:
            values[name] = value
    if words and words[0] in SWITCHES:
        switches.add(words.pop(0))
    if "help" in switches and "all" in words:
        words.remove("all")
        switches.add("all")
    if not values.get("experiment"):
        # An action may precede the experiment, unless the next word is the action's text.
        place = 1 if words[1:] and words[0] in ACTIONS and not ACTIONS[words[0]].text_option else 0
        if words[place:] and words[place] in experiments and words[place] not in ACTIONS:
            values["experiment"] = words.pop(place)
    options += _action_text(words, values, dict(options), experiments)
    action = words[0] if words else ""
    return Command(frozenset(switches), action=action, options=tuple(options), **values)


def _complete(name: str, value: str, rest: deque[str]) -> str:
    """Return an option's value with the further words of a list, and with the home folder for `~`."""
    while name in LISTS and rest and not rest[0].startswith("-") and rest[0] not in ACTIONS:
        value += f" {rest.popleft()}"
    if name in PATHS:
        value = re.sub(r"(^|[\s,])(~[^\s,/]*)", lambda m: m[1] + os.path.expanduser(m[2]), value)
    return value


def _action_text(
    words: Sequence[str],
    values: Mapping[str, str],
    options: Mapping[str, object],
    experiments: Collection[str],
) -> list[tuple[str, str]]:
    """Return the text after the action as an option. Raises UsageError for an unknown action or further words."""
    if not words:
        return []
    action, *texts = words
    if action not in ACTIONS:
        kind, known = "action", [*ACTIONS]
        if not values.get("experiment"):
            kind, known = "action or experiment", [*ACTIONS, *experiments]
        near = _meant_run(action) or did_you_mean(action, known)
        raise UsageError(f"unknown {kind} {action!r}: one of {', '.join(ACTIONS)}{near}")
    name, reads_folder = ACTIONS[action].text_option, ACTIONS[action].reads_folder
    text = texts.pop(0) if texts and name and name not in options else None
    # Not with pathlib, which raises an error for a text that is longer than a file's name.
    if text and not reads_folder and not values.get("run_dir") and os.path.exists(f"{text}/{CONFIG}"):
        raise UsageError(f"{text!r} after {action!r} is a run directory{_meant_run(text)}")
    if texts:
        near = _meant_run(texts[0]) or ": put a text of several words in quotes"
        raise UsageError(f"unexpected word {texts[0]!r} after {action!r}{near}")
    return [] if text is None else [(name, text)]


def _meant_run(word: str) -> str:
    """Return `; did you mean --run-dir WORD?` if the word looks like a folder."""
    path = word.isprintable() and "/" in word and not re.search(r"\s", word)
    return f"; did you mean {with_value('run_dir', word)}?" if path or (word and os.path.isdir(word)) else ""


def _needs_value(name: str, kind: type = str) -> UsageError:
    example = "True" if kind is bool else "VALUE"
    return UsageError(
        f"{option(name)} needs a value: {option(name)} {example}, or {option(name)}=VALUE if it begins with --"
    )


def run(command: Command, folders: Sequence[Path]) -> None:
    """Execute a command. Raises UsageError, RunError or OSError."""
    if command.experiments:  # its code may be that of an existing run
        open_folder(folders[0])
    if not command.only_shows():
        act(command, folders)
    elif "version" in command.switches:
        usage.show_version()
    elif "list" in command.switches:
        usage.show_list(folders)
    elif command.experiment or command.action or "all" in command.switches:
        folder = catalog.place(folders, command.experiment)
        usage.show_fields(folder, command.experiment, command.action, "all" in command.switches)
    else:
        usage.show_usage()


def act(command: Command, folders: Sequence[Path]) -> None:
    """Load the experiment, apply the overrides and call the action."""
    experiments = catalog.place(folders, command.experiment)
    verb = command.action or catalog.default_action(experiments, command.experiment)
    action = ACTIONS[verb]
    if command.distributed:
        if verb not in DISTRIBUTED:
            raise UsageError(f"--distributed is for {', '.join(DISTRIBUTED)}: start {verb} in one process")
        _join_processes(command, folders)
    overrides, action_options = _separate_options(command.options, action)
    experiment = _load(command, folders, action)
    suite_options = None
    if action.suite:
        experiment, suite_options = _at_budget(experiment, command, experiments, action_options)
    start = override(experiment, [pair for pair in overrides if pair[0].startswith("train.start_")]).train
    if start.start_from and command.experiment and not action.reads_run:
        experiment = inherit_model(replace(experiment, train=start), read_experiment(Path(start.start_from)))
    original, experiment = experiment, override(experiment, overrides)
    run_dir = Path(command.run_dir or Path("runs") / experiment.name)
    if action.reads_run:
        words = [("run_dir", command.run_dir)] if command.run_dir else []
        words += [] if experiment.data.corpus else [("data.corpus", "FILE")]
        experiment = as_trained(run_dir, overrides, launch(command.experiment or "EXPERIMENT", *words))
    elif command.experiment and has_other_pairs(original, experiment):
        validate(experiment)  # before a corpus is read
        recipe = catalog.function(experiments, command.experiment, "recipe_for_pairs")
        chosen = _by_recipe(recipe, experiment, dict(overrides), run_dir) if recipe else {}
        experiment = changed(experiment, chosen)
        experiment = on_own_pairs(original, experiment, {**dict(overrides), **chosen})
    validate(experiment)
    options = [override(action.options(experiment), action_options)] if action.options else []
    required = ["variants"] if action.suite else action.functions
    functions = catalog.functions(experiments, command.experiment, required)

    suite = make_suite(experiment, functions[0], suite_options.only) if suite_options else None
    if verb == "train":
        check_libraries()  # before they are imported
    name = verb.replace("-", "_")
    function = getattr(import_module(f"zerotollm.actions.{name}"), name)
    if suite:
        function(suite, run_dir, suite_options)
    else:
        function(experiment, run_dir, *functions, *options)


def _separate_options(
    options: Iterable[tuple[str, str | None]], action: Action
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return overrides of the experiment and options of the action. Raises UsageError for any other option."""
    fields = field_types(Experiment)
    own = field_types(type(action.options(Experiment()))) if action.options else {}
    overrides, action_options = [], []
    for name, value in options:
        if name not in fields and name not in own:
            near = meant_option(name, map(option, [*own, *fields, *ALIASES, *VALUES, *SWITCHES]))
            typed = option(name).replace("---", "-")  # typed with one dash
            raise UsageError(f"unknown option {typed}: --help all shows all options{near}")
        if value is None:
            raise _needs_value(name, (own | fields)[name])
        (overrides if name in fields else action_options).append((name, value))
    return overrides, action_options


def _load(command: Command, folders: Sequence[Path], action: Action) -> Experiment:
    if command.experiment:
        return catalog.load(catalog.place(folders, command.experiment), command.experiment)
    if action.reads_folder or (command.run_dir and action.reads_run):
        return Experiment()  # `as_trained` reads the run directory
    if command.run_dir and (Path(command.run_dir) / CONFIG).exists() and not action.functions:
        return read_experiment(Path(command.run_dir))
    raise UsageError(f"add --experiment NAME: one of {', '.join(sorted(catalog.places(folders)))}")


def _at_budget(
    experiment: Experiment, command: Command, experiments: Path, action_options: Iterable[tuple[str, str]]
) -> tuple[Experiment, AblateOptions]:
    """Return the experiment in the size that `--budget` names, and the options of its suite."""
    options = override(AblateOptions(), action_options)
    budget = catalog.function(experiments, command.experiment, "budget")
    if budget:
        return budget(experiment, options.budget), options
    if "budget" in dict(action_options):
        raise UsageError(f"{command.experiment} has no budgets: leave --budget out to run it in full")
    return experiment, replace(options, budget="full")


def _by_recipe(
    recipe: Callable[[int, int], Mapping[str, Any]],
    experiment: Experiment,
    overrides: Collection[str],
    run_dir: Path,
) -> dict[str, Any]:
    """Return the fields that a recipe chooses by bytes of targets and tokens of a step, but for overrides.

    A finished run keeps its own, and its pairs are not read.
    """
    data = experiment.data
    # A pretrained model has a size, and a set of tfds would be downloaded to be measured, even to plan.
    if experiment.train.start_from or data.corpus.startswith("tfds:"):
        return {}
    if (run_dir / SUMMARY).exists() and (trained := read_experiment(run_dir)).data.corpus == data.corpus:
        fields = {name: value for name, value in flatten(trained).items() if name in recipe(0, 1)}
    else:
        size = import_module("zerotollm.data.sources.parallel").target_bytes(data)
        fields = recipe(size, data.batch_size * data.context)
    chosen = {name: value for name, value in fields.items() if name not in overrides}
    if chosen:
        values = ", ".join(f"{option(name)} {value}" for name, value in chosen.items())
        logging.getLogger(__name__).warning(f"chosen by the size of {data.corpus}: {values}")
    return chosen


def _join_processes(command: Command, folders: Sequence[Path]) -> None:
    address = parse_distributed(command.distributed)
    prepare_gpu()
    processes = import_module("zerotollm.sharding.processes")
    processes.join(address.coordinator, address.process, address.num_processes)
    options = [pair for pair in command.options if pair[0] != "data.dir"]  # it may differ between machines
    command_values = [command.experiment, command.run_dir, command.action, sorted(command.switches), options]
    processes.check_same(
        configuration=command_values, code=processes.code_version(Path(__file__).parent, *folders)
    )


def override(default: T, options: Iterable[tuple[str, str]]) -> T:
    """Return a dataclass with some fields, by dotted name, parsed from text. Raises UsageError for a wrong type."""
    types = field_types(type(default))
    for name, text in options:
        value = parse_value(text, types[name])
        if not is_valid(value, types[name]):
            raise wrong_type(option(name), text, types[name])
        default = changed(default, {name: value})
    return default


def parse_value(text: str, annotation: Any) -> Any:
    """Return the value of a field's type that the text means, or the text itself if there is none."""
    if annotation is bool:
        return {"True": True, "False": False}.get(text, text)
    try:
        return {int: parse_int, float: float}.get(annotation, str)(text)
    except ValueError:
        return text


def parse_int(text: str) -> int:
    """Return a whole number, also of `1e3`, `1k`, `1.5M`, `2B` and `1,000`. Raises ValueError for any other text."""
    match = re.fullmatch(r"(-?\d+(?:,\d{3})*(?:\.\d+)?)(?:[eE]\+?(\d{1,2}))?([kKmMgGbB]?)", text)
    if not match:
        return int(text)
    power = int(match[2] or 0) + {"": 0, "k": 3, "m": 6}.get(match[3].lower(), 9)
    number = Decimal(match[1].replace(",", "")).scaleb(power)
    if number != int(number):
        raise ValueError(text)
    return int(number)


def as_trained(run_dir: Path, overrides: Iterable[tuple[str, str]], training: str) -> Experiment:
    """Return the experiment of a run directory. Raises UsageError if overrides would change what was trained."""
    if not run_dir.exists():
        raise UsageError(
            f"{run_dir} does not exist: train first with {training}, or name a run directory with --run-dir DIR"
        )
    trained = read_experiment(run_dir)
    # A run is read on one device, whatever mesh trained it, unless the command names a mesh.
    requested = override(replace(trained, train=replace(trained.train, mesh="")), overrides)
    for name, before, after in differences(trained, requested):
        if not name.startswith(RUN_MAY_CHANGE) and name != "data.test":
            message = f"{run_dir} was trained with {name} {before}, not {after}: leave {option(name)} out"
            raise UsageError(message)
    return located(run_dir, requested)
