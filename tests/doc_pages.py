"""Run the Python of the documentation's pages, and write what it prints and draws into them:

    python -m tests.doc_pages --runs runs docs/learn/*.md       after a training: new outputs and figures

Blocks of one page share a namespace and run in order, in a folder with `runs/` and `results/`. A block of the language
`text` that follows a block of Python is its output. An image `figures/NAME.png` of a page is the file NAME.png that the
page saves.
"""

import argparse
import contextlib
import io
import json
import os
import re
import runpy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = "\x1e"
"""Printed before each block, to tell the outputs apart."""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str
    line: int
    """of its first line in the page, from 1"""


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    return [Block(m[1], m[2], text[: m.start(2)].count("\n") + 1) for m in FENCE.finditer(text)]


def script(text: str) -> str:
    """Return the Python of a page as one program, each line at its number in the page."""
    lines = [""] * (text.count("\n") + 2)
    for number, block in enumerate(python(text)):
        lines[block.line - 2] = f"print({MARK + str(number) + MARK!r}, end='')"
        lines[block.line - 1 : block.line - 1 + block.code.count("\n")] = block.code.splitlines()
    return "\n".join(lines)


def python(text: str) -> list[Block]:
    return [block for block in blocks(text) if block.language == "python"]


def notebook_page(notebook: Path) -> str:
    """Return a Jupyter notebook as the text of a page."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n".join(f"```python\n{text}\n```\n" if kind == "code" else f"{text}\n" for kind, text in sources)


def run_page(page: Path, folder: Path) -> list[str]:
    """Run the Python of a page in a folder; return what each block printed."""
    text = page.read_text(encoding="utf-8")
    program = folder / f"{page.stem}.py"
    program.write_text(script(text), encoding="utf-8")
    printed = io.StringIO()
    with inside(folder), contextlib.redirect_stdout(printed):
        runpy.run_path(str(program), run_name="page")
    return printed.getvalue().split(MARK)[2::2]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make `folder` the working directory for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def with_outputs(text: str, outputs: list[str]) -> str:
    """Return the page with new outputs in the blocks of text that follow blocks of Python."""
    parts, start, output = [], 0, ""
    numbered = iter(outputs)
    for match in FENCE.finditer(text):
        if match[1] == "python":
            output = next(numbered)
        elif match[1] == "text" and output and not text[start : match.start()].strip():
            parts += [text[start : match.start(2)], output.rstrip("\n") + "\n", "```"]
            start, output = match.end(), ""
            continue
        else:
            output = ""
        parts.append(text[start : match.end()])
        start = match.end()
    return "".join([*parts, text[start:]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder with the runs that pages load"
    )
    arguments = parser.parse_args()
    for page in arguments.pages:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "runs").symlink_to(arguments.runs.resolve())
            (folder / "results").symlink_to(ROOT / "results")
            outputs, text = run_page(page, folder), page.read_text(encoding="utf-8")
            page.write_text(with_outputs(text, outputs), encoding="utf-8")
            for file in re.findall(r"\]\((figures/[\w.-]+\.png)\)", text):
                drawn = folder / Path(file).name
                if drawn.exists():
                    shutil.copy(drawn, page.parent / file)


if __name__ == "__main__":
    main()
