"""Write the generated pages of docs/reference/ from docstrings:

    python -m tests.doc_reference

A test compares the pages with what this makes.
"""

import re
from pathlib import Path
from typing import get_args

from zerotollm import catalog, run_directory
from zerotollm.actions import ACTIONS
from zerotollm.experiment import Experiment
from zerotollm.fields import field_types, flatten
from zerotollm.shell import option
from zerotollm.usage import USAGE, field_docstrings

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
GENERATED = "\n<!-- written by python -m tests.doc_reference -->\n"


def table(header: str, rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table; `header` names its columns, separated by `|`."""
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def kind(annotation: type) -> str:
    """Return the values of a field: its choices, or its type."""
    choices = get_args(annotation)
    return ", ".join(f"`{choice}`" for choice in choices) if choices else f"`{annotation.__name__}`"


def fields_table(config: object, dotted: bool) -> str:
    """Return a table of the fields of a dataclass: option, values, default, docstring."""
    values, docs, rows = flatten(config), {}, []
    for parent in reversed(type(config).__mro__[:-1]):
        docs |= field_docstrings(parent)
    for name, annotation in field_types(type(config)).items():
        flag = option(name) if dotted else f"--{name.replace('_', '-')}"
        default = values[name]
        rows.append(
            (f"`{flag}`", kind(annotation), f"`{default}`" if default != "" else "", docs.get(name, ""))
        )
    return table("option|values|default|meaning", rows)


def fields_page() -> str:
    """Return the page of all fields of an experiment, by group."""
    text = "# Fields of an experiment\n\nEvery field can be set on the command line, as in `--train.steps 200`.\n"
    text += "Defaults are those of `Experiment()`; an experiment's file may have others.\n"
    experiment = Experiment()
    for name, value in vars(experiment).items():
        if name in ("name", "code"):
            continue
        doc = " ".join((type(value).__doc__ or "").split())
        inner = fields_table(value, dotted=True).replace("`--", f"`--{name}.")
        text += f"\n## {name}\n\n{doc}\n\n{inner}"
    return text + GENERATED


def usage_table() -> str:
    """Return a table of the options of `--help` that every command has."""
    block = USAGE.split("\n\n")[2]
    entries = [" ".join(entry.split("\n")) for entry in re.split(r"\n(?=  \S)", block)]
    rows = [re.fullmatch(r" *(.+?) {2,}(.+)", entry).groups() for entry in entries]
    return table("option|meaning", [(f"`{name}`", re.sub(" +", " ", meaning)) for name, meaning in rows])


def actions_page() -> str:
    """Return the page of the command line: its actions and their options."""
    text = (
        "# Command line\n\n"
        "    python launch.py --experiment NAME [ACTION] [--FIELD VALUE ...] [--run-dir DIR]\n\n"
        "Without an action the experiment is trained, or resumed. `--list` lists all experiments, `--help` shows the\n"
        "fields that people change, `--help all` every field, and `ACTION --help` the options of an action.\n"
        "`python launch.py NAME` is short for `--experiment NAME`.\n\n"
    )
    text += "## Options of every command\n\n" + usage_table()
    experiment = Experiment()
    for name, action in ACTIONS.items():
        end = "" if action.summary.endswith("?") else "."
        text += f"\n## {name}\n\n{action.summary[0].upper()}{action.summary[1:]}{end}\n"
        if action.options:
            text += "\n" + fields_table(action.options(experiment), dotted=False)
    return text + GENERATED


def experiments_page() -> str:
    """Return the page of all experiments, by group."""
    text = "# Experiments\n\nEach is a file in `experiments/` with a function `experiment()`.\n"
    described = {name: catalog.describe(EXPERIMENTS, name) for name in catalog.names(EXPERIMENTS)}
    for group in dict.fromkeys([*catalog.GROUPS, *(d.group for d in described.values())]):
        members = {name: d for name, d in described.items() if d.group == group}
        if not members:
            continue
        text += f"\n## {group or 'others'}\n"
        for name, found in members.items():
            question = found.question[:1].upper() + found.question[1:]
            text += f"\n### {name}\n\n{question}\n\n"
            rows = [(label, getattr(found, label)) for label in ("command", "time", "expected")]
            text += table("what|", [(label, text_of) for label, text_of in rows if text_of])
    return text + GENERATED


def run_directory_page() -> str:
    """Return the page of a run's files."""
    lines = re.findall(r"^(\S+)  +(\S.*)$", run_directory.__doc__ or "", flags=re.MULTILINE)
    text = (
        "# Run directory\n\nEverything about one training is in `runs/NAME`, or where `--run-dir` says.\n\n"
    )
    text += table("file|content", [(f"`{name}`", meaning) for name, meaning in lines])
    text += (
        "\nThe actions `explain` and `report` add `explain.json` and `report.html`. A run directory may be moved.\n"
        "A run that trained only adapters or some layers needs the run that it was initialized from.\n"
    )
    return text + GENERATED


PAGES = {
    "command_line.md": actions_page,
    "fields.md": fields_page,
    "experiments.md": experiments_page,
    "run_directory.md": run_directory_page,
}


def main() -> None:
    for name, page in PAGES.items():
        (ROOT / "docs/reference" / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
