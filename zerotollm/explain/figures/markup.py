"""Escaping of texts for libraries that read markup in them."""

from html import escape

from zerotollm.output import printable


def literal(text: object) -> str:
    """Return text that plotly shows as it is written: plotly reads tags and entities in labels and hover texts."""
    return escape(str(text), quote=False).replace("\n", "<br>")


def plain(text: str) -> str:
    """Return text that matplotlib shows as it is written.

    Dollar signs do not start mathematics, and a leading underscore does not hide a label. Characters that are not in
    matplotlib's font become a box.
    """
    shown = printable(text).expandtabs()
    shown = "".join(c if ord(c) < 0x2E80 else "\N{WHITE SQUARE}" for c in shown).replace("$", r"\$")
    return "\N{ZERO WIDTH SPACE}" + shown if shown.startswith("_") else shown
