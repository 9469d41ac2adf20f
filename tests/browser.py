"""Headless Chromium for the tests of pages: the system's, or that of `playwright install chromium`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    # Root, as in a container, has no sandbox.
    "--no-sandbox",
    # It asks nobody for anything by itself.
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
    "--disable-quic",
    # The software renderer stands in for a graphics card.
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip
WAIT_MS = 120_000
"""A page that has not come so far by then hangs; a busy machine is no error."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's, whose expectations wait `WAIT_MS`. Skips the test where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="a development requirement: requirements-dev.txt"
    )
    playwright.expect.set_options(timeout=WAIT_MS)
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as p:
        if not path and not Path(p.chromium.executable_path).exists():
            pytest.skip("no Chromium: `playwright install chromium`, or the system's package")
        browser = p.chromium.launch(executable_path=path, args=FLAGS, timeout=WAIT_MS)
        yield browser
        browser.close()
