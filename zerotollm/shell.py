"""Commands for messages, which run when they are pasted into a shell. No heavy imports."""

import re
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

CHECKOUT = (Path(__file__).parents[1] / "launch.py").is_file()
"""Whether this package is a checkout of the repository, not an installed copy."""
LAUNCH = "python launch.py" if CHECKOUT and Path(sys.argv[0]).stem != "zerotollm" else "zerotollm"
"""The command that started this process, or that a user of this copy would type."""


def quoted(text: str) -> str:
    """Return a text as one word of a shell, in double quotes if those suffice."""
    quoted_text = shlex.quote(text)
    special = re.search(r'["$`\\!\x00-\x1f\x7f]', text)
    return quoted_text if quoted_text == text or special else f'"{text}"'


def option(name: str) -> str:
    """Return a field's option: `--train.batch-size` for `train.batch_size`."""
    return "--" + name.replace("_", "-")


def with_value(name: str, value: object) -> str:
    """Return `--name value`, or `--name=value` if the value is empty or looks like an option."""
    text = str(value)
    return f"{option(name)}{'=' if text.startswith('-') or not text else ' '}{quoted(text)}"


def launch(*words: str | tuple[str, object]) -> str:
    """Return a command of words and (name, value) pairs: `launch(("run_dir", "runs/base"), "generate")`."""
    return " ".join([LAUNCH, *(quoted(w) if isinstance(w, str) else with_value(*w) for w in words)])


def typed_again(changes: Mapping[str, object], without: Collection[str] = ()) -> str:
    """Return this process's command with changed options and `without` some words; "" if it is no command of ours."""
    if Path(sys.argv[0]).stem not in ("launch", "zerotollm"):
        return ""
    words, dropping = [], False
    for word in sys.argv[1:]:
        name, equals, _ = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if word.startswith("--"):
            drop = name in changes or name in without
            dropping = drop and not equals
        else:
            drop = dropping or word in without
            dropping = dropping and bool(equals)  # the value of a mesh has several words: data=2 fsdp=4
        if not drop:
            words.append(quoted(word))
    return " ".join([LAUNCH, *words, *(with_value(*pair) for pair in changes.items())])


def another(run_dir: Path) -> Path:
    """Return an unused run directory beside a used one: `runs/base-2`."""
    number = 2
    while (unused := run_dir.with_name(f"{run_dir.name}-{number}")).exists():
        number += 1
    return unused
