"""Hooks of the site's build (mkdocs.yml): docstrings, links to source files, figures of results/, formulas as MathML.

MathML needs no script.
"""

import re
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

DOCSTRING = re.compile(r"^\[`(zerotollm[\w.]+)`\]\([^)]*\).*$", re.MULTILINE)
"""A line that is a link to the file of a definition: the site shows the docstring there."""
IN_PLACE = " `mkdocs serve` shows the docstrings in place of the links."
"""A sentence for readers of the file itself."""
RESULTS = Path(__file__).parent.parent / "results"


def on_files(files, *, config):
    """Add the figures of results/ to the site, as results/figures/SUITE/FIGURE."""
    for path in sorted(RESULTS.glob("**/*.png")):
        name = path.relative_to(RESULTS).as_posix()
        files.append(File.generated(config, f"results/figures/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page, config, **_) -> str:
    """Point links to files outside docs/ at the repository, or leave their text where it has no address."""
    if page.file.src_uri == "reference/python_api.md":
        markdown = DOCSTRING.sub(r"::: \1", markdown).replace(IN_PLACE, "")
    if page.file.src_uri.startswith("results/"):
        markdown = markdown.replace("](../../results/", "](figures/")
    outside = re.escape("../" * (1 + page.file.src_uri.count("/")))

    def link(match: re.Match[str]) -> str:
        text, path = match.groups()
        return f"[{text}]({config.repo_url}/blob/main/{path})" if config.repo_url else text

    return re.sub(rf"\[([^\]]+)\]\({outside}([^.)][^)]*)\)", link, markdown)


def on_page_content(html: str, **_) -> str:
    """Return the page with its formulas as MathML."""

    def formula(match: re.Match[str]) -> str:
        return convert(unescape(match[2]), display="block" if match[1] == "div" else "inline")

    return FORMULA.sub(formula, html)
