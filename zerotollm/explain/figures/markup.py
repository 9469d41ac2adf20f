"""Text as it is written, in figures whose libraries read markup in it."""

from html import escape

from zerotollm.output import printable


def literal(text: object) -> str:
    """Text as plotly shows it and not as its markup: it reads tags and entities in labels and hover texts."""
    return escape(str(text), quote=False).replace("\n", "<br>")


def plain(text: str) -> str:
    """Text as matplotlib shows it: no mathematics between dollar signs, no label hidden for its first underscore, and a
    box for a character that its font does not have."""
    shown = printable(text).expandtabs()
    shown = "".join(c if ord(c) < 0x2E80 else "\N{WHITE SQUARE}" for c in shown).replace("$", r"\$")
    return "\N{ZERO WIDTH SPACE}" + shown if shown.startswith("_") else shown
