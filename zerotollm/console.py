"""The console that everything is shown on."""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from zerotollm.output import printable


class Console(rich.console.Console):
    """Rich's console, which shows every text as it is written: brackets are no markup, `:name:` is no emoji, and
    control characters do not reach the terminal."""

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        # Rich takes a tab for one column wide, and wraps cells too late.
        return super().render_str(printable(text).expandtabs(), **options)


class Lines:
    """Lines of text for `Console.print`, which otherwise turns tabs into spaces."""

    def __init__(self, text: str):
        self.text = text

    def __rich_console__(self, *_: Any) -> Iterable[Segment]:
        yield Segment(printable(self.text))
        yield Segment.line()
