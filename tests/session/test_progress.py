"""The time left counts pauses, and an output that is not a terminal gets no control characters."""

import io
import math

import pytest
from rich.console import Console

from zerotollm.session import progress
from zerotollm.session.progress import Display, Pace, clock
from zerotollm.training.config import due, times


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until it is moved."""
    hands = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: hands[0])

    def move(seconds: float) -> None:
        hands[0] += seconds

    return move


def test_time_left_counts_pauses_and_leaves_them_out_of_the_rate(now):
    pace = Pace(tokens_per_step=1000)
    now(60)  # compiling
    pace.begin()
    for _ in range(10):
        now(0.5)
        pace.step_done()
    with pace.pause("validation"):
        now(7)
    now(0.5)
    pace.step_done()
    assert pace.tokens_per_second == pytest.approx(2000)
    assert pace.seconds == pytest.approx(5.5)
    left = pace.seconds_left(20, {"validation": (2, 100.0), "sample": (1, 4.0)})
    assert left == pytest.approx(20 * 0.5 + 2 * 7 + 1 * 4.0 * 0.5)  # a sample was never measured: 4 steps


def test_nothing_is_claimed_before_the_first_step():
    assert math.isnan(Pace(1).seconds_left(10, {}))
    assert clock(math.nan) == "-"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (754, "12:34"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("every", [0, 1, 3, 7, 10, 11])
def test_times_counts_what_due_will_say(every):
    for step in range(11):
        assert times(step, 10, every) == sum(due(later, 10, every) for later in range(step + 1, 11))


def show(display: Display) -> None:
    with display:
        display.begin(0)
        for step in range(1, 101):
            display.progress(step, 2.5, 8000.0, 100.0 - step)
        display.validation(100, "loss 1.5000, 1.2500 bits per byte", best=True)
        display.sample(100, "In the beginning \x1b[31m\x07[bold]was " + "a very long line " * 20)
        display.table({"steps": "100"}, [("let it write", "python launch.py")])


def test_without_a_terminal_there_are_about_ten_plain_lines():
    out = io.StringIO()
    show(Display(100, Console(file=out)))
    lines = out.getvalue().splitlines()
    assert sum("tokens/s" in line for line in lines) == 10
    assert any("1.2500 bits per byte, the best so far" in line for line in lines)
    assert all(c.isprintable() or c == "\n" for c in out.getvalue())
    (sample,) = [line for line in lines if line.startswith("In the beginning")]
    assert "[bold]was" in sample  # neither taken for markup nor wrapped
    assert len(sample) > 300


def test_a_terminal_never_obeys_the_model():
    out = io.StringIO()
    show(Display(100, Console(file=out, force_terminal=True, width=100)))
    assert "\x1b[31m" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "8,000 tokens/s" in out.getvalue()


def test_preparing_shows_a_tenth_at_a_time_and_the_time_left(now):
    out = io.StringIO()
    display = Display(10, Console(file=out))
    for done in range(40, 201):  # 40 were there
        display.preparing(done, 200)
        now(1.0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "prepared 60 of 200 parts of the text, 2:20 left"
    assert lines[-1] == "prepared 200 of 200 parts of the text, 0:00 left"
    assert len(lines) == 8


def test_the_bar_of_preparing_is_gone_before_training_shows_its_own():
    out = io.StringIO()
    with Display(10, Console(file=out, force_terminal=True, width=100)) as display:
        display.preparing(1, 3)
        assert display._bar
        display.preparing(3, 3)
        assert not display._bar
        display.begin(0)
        display.progress(1, 1.0, 10.0, 5.0)
    assert "preparing" in out.getvalue()
