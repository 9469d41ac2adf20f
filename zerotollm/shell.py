"""Commands that run when they are pasted. No heavy imports."""

import re
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

LAUNCH = "python launch.py"


def quoted(text: str) -> str:
    """The text as one word of a shell, in double quotes where that is enough."""
    plain = shlex.quote(text)
    special = re.search(r'["$`\\!\x00-\x1f\x7f]', text)
    return plain if plain == text or special else f'"{text}"'


def option(name: str) -> str:
    """How a field is spelled on the command line: `train.batch_size` is `--train.batch-size`."""
    return "--" + name.replace("_", "-")


def with_value(name: str, value: object) -> str:
    """`--name value`, or `--name=value` where the value looks like an option."""
    text = str(value)
    return f"{option(name)}{'=' if text.startswith('-') or not text else ' '}{quoted(text)}"


def launch(*words: str | tuple[str, object]) -> str:
    """A command of words and (name, value) pairs: `launch(("run_dir", "runs/base"), "generate")`."""
    return " ".join([LAUNCH, *(quoted(w) if isinstance(w, str) else with_value(*w) for w in words)])


def typed_again(changes: Mapping[str, object], without: Collection[str] = ()) -> str:
    """The command that was typed with other values for some options, and `without` some options and actions; nothing
    where this process was not started by launch.py."""
    if Path(sys.argv[0]).name != "launch.py":
        return ""
    kept, dropping = [], False
    for word in sys.argv[1:]:
        name, equals, _ = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if word.startswith("--"):
            dropping = name in changes or name in without
            kept += [] if dropping else [quoted(word)]
            dropping = dropping and not equals
        elif not dropping:
            kept += [] if word in without else [quoted(word)]
        else:
            dropping = "=" in word  # data=2 fsdp=4: a mesh has several words
    return " ".join([LAUNCH, *kept, *(with_value(*pair) for pair in changes.items())])


def another(run_dir: Path) -> Path:
    """A run directory that is free, beside one that is taken: `runs/base-2`."""
    number = 2
    while (free := run_dir.with_name(f"{run_dir.name}-{number}")).exists():
        number += 1
    return free
