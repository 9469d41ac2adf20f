"""The text of pages and books, .html and .epub, and the length of the front matter of .md."""

import io
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote
from xml.etree import ElementTree

from zerotollm.data.sources.compression import DAMAGED, check_ratio
from zerotollm.data.sources.lines import decoded, read_content, unix_ends
from zerotollm.errors import UsageError

FRONT_MATTER = 1 << 16  # most bytes of it: a line of dashes that nothing closes so soon is a rule of the text
_HIDDEN = {"script", "style", "head", "template", "noscript", "svg", "math", "iframe", "object"}
# fmt: off
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
    "hr", "li", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "tr", "ul",
}
# fmt: on
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def read_page(path: Path, ratio: float) -> str:
    """Return the text of the body of an HTML file: a blank line between blocks, no scripts and no styles."""
    return html_text(decoded(path, 0, read_content(path, ratio)))


def html_text(html: str) -> str:
    """Return the text of the body of a page."""
    parser = _Body()
    parser.feed(html)
    parser.close()
    return parser.text()


class _Body(HTMLParser):
    """Collects text by blocks. White space is collapsed except in `pre`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._blocks: list[str] = []
        self._parts: list[str] = []
        self._hidden = ""  # the element that hides all it holds
        self._depth = 0  # of elements of that name in it
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden:
            self._depth += tag == self._hidden
        elif tag in _HIDDEN:
            self._hidden, self._depth = tag, 1
        elif tag == "body":  # the tag that closes the head may be left out
            self._parts.clear()
        elif tag == "br":
            self._parts.append("\n")
        elif tag in ("td", "th"):
            self._parts.append(" ")
        if tag in _BLOCKS and not self._hidden:
            self._end_block()
            self._verbatim += tag == "pre"
        if self._hidden == "head" and tag == "body":
            self._hidden = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID or tag in _BLOCKS:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            self._depth -= tag == self._hidden
            if not self._depth:
                self._hidden = ""
        elif tag in _BLOCKS:
            self._end_block()
            self._verbatim = max(0, self._verbatim - (tag == "pre"))

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:  # `<![` and any word, which browsers take for a comment
            return self.parse_bogus_comment(i)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._parts.append(data if self._verbatim else re.sub(r"[ \t\r\n\f]+", " ", data))

    def _end_block(self) -> None:
        text = "".join(self._parts)
        self._parts.clear()
        if not self._verbatim:
            text = re.sub(r" *\n *", "\n", re.sub(r" +", " ", text)).strip(" \n")
        if text.strip():
            self._blocks.append(text.strip("\n"))

    def text(self) -> str:
        self._end_block()
        return unix_ends("\n\n".join(self._blocks) + "\n" * bool(self._blocks))


def read_book(path: Path, ratio: float) -> str:
    """Return the text of an EPUB: its pages in reading order, with a blank line between them."""
    content = read_content(path, ratio)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as book:
            check_ratio(path, sum(entry.file_size for entry in book.infolist()), len(content), ratio)
            return "\n".join(html_text(decoded(path, 0, book.read(name))) for name in _pages(book))
    except (
        zipfile.BadZipFile,
        KeyError,
        ElementTree.ParseError,
        RuntimeError,
        ValueError,
        *DAMAGED,
    ) as error:
        raise UsageError(f"{path} is not a complete EPUB, or is encrypted: {error}") from error


def _pages(book: zipfile.ZipFile) -> list[str]:
    """Return the names of a book's pages in reading order (EPUB 3.3, sections 4.2 and 5)."""
    container = ElementTree.fromstring(book.read("META-INF/container.xml"))
    root = next((e.get("full-path", "") for e in container.iter() if _name(e) == "rootfile"), "")
    package = ElementTree.fromstring(book.read(root))
    items = {e.get("id"): e for e in package.iter() if _name(e) == "item"}
    spine = [
        items[e.get("idref")] for e in package.iter() if _name(e) == "itemref" and e.get("idref") in items
    ]
    pages = [e.get("href", "") for e in spine if "html" in e.get("media-type", "")]
    return [str(PurePosixPath(root).parent / unquote(href.partition("#")[0])) for href in pages]


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def front_matter_size(path: Path, ratio: float) -> int:
    """Return the bytes of the block between two lines of three dashes that begins a .md file, or 0."""
    head = read_content(path, ratio, FRONT_MATTER)
    # Its first line is `key: value`: a text may begin with a rule too.
    form = rb"(\xef\xbb\xbf)?---[ \t]*\r?\n[^\n]*:.*?\n(---|\.\.\.)[ \t]*(\r?\n|$)"
    match = re.match(form, head, re.DOTALL)
    return match.end() if match else 0
