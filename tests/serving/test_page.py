"""The page in headless Chromium: what a person does with keyboard and mouse, and that nothing is markup or foreign.

With ZEROTOLLM_PICTURES=DIR its pictures are kept there, to be looked at.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import WAIT_MS, chromium
from tests.serving.conftest import KEY

playwright = pytest.importorskip(
    "playwright.sync_api", reason="a development requirement: requirements-dev.txt"
)
expect = playwright.expect


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


LOOKS = {
    "light": {"viewport": {"width": 1000, "height": 760}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 780}, "color_scheme": "dark"},
}


@pytest.fixture
def opened(browser, server):
    """Opens the page with a look; at the end it must have been silent, and have asked this server alone."""
    wrong, pages = [], []

    def open_page(look: str, refusals: bool = False, server: str = server) -> Any:
        def heard(message: Any) -> None:
            if not (refusals and "status of 40" in message.text):  # what Chromium itself says of a refusal
                wrong.append(message.text)

        context = browser.new_context(**LOOKS[look])
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(server) else wrong.append(r.url))
        page.goto(server)
        pages.append((look, page))
        return page

    yield open_page
    for look, page in pages:
        if "ZEROTOLLM_PICTURES" in os.environ:
            page.screenshot(path=f"{os.environ['ZEROTOLLM_PICTURES']}/{look}.png")
        page.context.close()
    assert not wrong


def has_ended(page: Any) -> None:
    """Waits until a text has ended. The status alone would be too early: the page still takes the focus then."""
    expect(page.locator("#status")).to_contain_text("the first after")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()


def test_a_text_is_written_on_and_its_tokens_tell_what_else_was_likely(opened):
    page = opened("light")
    expect(page.locator("#facts")).to_have_text("context 48 tokens")
    expect(page.locator("#prompt")).to_be_focused()
    page.get_by_text("Sampling").click()
    page.get_by_label("Seed").fill("5")  # of some seeds the text has three tokens
    page.locator("#prompt").click()
    page.keyboard.type("heaven")
    page.keyboard.press("Enter")
    has_ended(page)
    text = page.locator(".text")
    tokens = text.locator(".token")
    assert tokens.count() > 3
    expect(text).to_contain_text("heaven")
    # By keyboard alone: the first token has the tab stop, arrows go on, and the panel follows.
    tokens.nth(0).focus()
    first = page.locator("#considered").inner_text()
    assert "was drawn with a probability of" in first
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1)).to_have_attribute("aria-current", "true")
    page.keyboard.press("End")
    expect(tokens.last).to_be_focused()
    page.keyboard.press("Home")
    expect(page.locator("#considered")).to_have_text(first)
    shares = page.locator("#alternatives .share").all_inner_texts()
    assert len(shares) >= 10
    assert page.locator("#alternatives .drawn").count() == 1
    tokens.nth(2).hover()
    expect(tokens.nth(2)).to_have_attribute("aria-current", "true")


def test_a_conversation_on_a_phone_shows_markup_as_text_and_says_what_was_dropped(opened):
    page = opened("phone", refusals=True)
    expect(page.locator("#facts")).to_have_text("context 48 tokens")
    page.get_by_label("Chat").check()
    page.get_by_text("Sampling").click()
    page.get_by_label("Max tokens").fill("6")
    page.get_by_label("Seed").fill("5")
    said = "<img src=x onerror=alert(1)>"
    for turn in range(2):
        page.locator("#prompt").fill(said)
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".card")).to_have_count(2 * (turn + 1))
        has_ended(page)
    expect(page.locator(".card .text").nth(0)).to_have_text(said)
    assert page.locator("main img").count() == 0
    expect(page.locator(".note")).to_contain_text("no longer sees its oldest turn")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="New").click()
    expect(page.locator(".card")).to_have_count(0)


def test_an_error_is_said(opened):
    page = opened("light", refusals=True)
    expect(page.locator("#facts")).to_have_text("context 48 tokens")
    page.locator("#prompt").fill("light " * 100)
    with page.expect_response("**/v1/completions") as answer:
        page.get_by_role("button", name="Send").click()
    assert answer.value.status == 400
    expect(page.get_by_role("alert")).to_contain_text("the context of this model holds 48")


def test_a_server_with_a_key_asks_for_it(opened, locked):
    page = opened("light", refusals=True, server=locked)
    expect(page.get_by_role("alert")).to_contain_text("an API key is needed")
    page.get_by_label("Key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").last).to_contain_text("the API key is wrong")
    page.get_by_label("Key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_have_text("context 48 tokens")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_label("Key")).to_be_hidden()
    page.locator("#prompt").fill("heaven")
    page.keyboard.press("Enter")
    has_ended(page)
