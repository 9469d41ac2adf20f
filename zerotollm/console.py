"""The console for all output."""

from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from zerotollm.output import printable
from zerotollm.types import Json


class Console(rich.console.Console):
    """Rich's console without interpretation of texts: no markup, no emoji codes, no control characters."""

    def __init__(self, **options: Any):
        plain: Json = {"markup": False, "emoji": False, "highlight": False}
        super().__init__(**plain | options)

    def render_str(self, text: str, **options: Any) -> Text:
        # Rich takes a tab for one column, and wraps cells too late.
        return super().render_str(printable(text).expandtabs(), **options)


class Lines:
    """Lines of text for `Console.print`, with their tabs, which it replaces in a string."""

    def __init__(self, text: str):
        self.text = text

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(printable(self.text))
        yield Segment.line()
