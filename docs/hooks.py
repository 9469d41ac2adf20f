"""Hooks of the site's build (mkdocs.yml): links to source files, and formulas as MathML, which needs no script."""

import re
from html import unescape

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, *, page, config, **_) -> str:
    """Point links to files outside docs/ at the repository, or leave their text where it has no address."""
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
