"""What a run shows while it trains: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from zerotollm.console import Console, Lines

PLAIN_LINES = 10
"""Progress lines of a run where the output is not a terminal, besides one for each validation."""


class Clock(NamedTuple):
    """A moment, in wall time and in processor time of all threads of this process; or the time between two."""

    seconds: float
    cpu_seconds: float

    @staticmethod
    def now() -> "Clock":
        """Return this moment."""
        return Clock(time.monotonic(), time.process_time())

    def passed(self) -> "Clock":
        """Return the time since this moment."""
        now = Clock.now()
        return Clock(now.seconds - self.seconds, now.cpu_seconds - self.cpu_seconds)


class Pace:
    """Duration of a step, and time left.

    The rate counts only the time in which steps run: no compilation, validation, sample or save. The time left counts
    them with their last duration.
    """

    def __init__(self, tokens_per_step: float, seconds: float = 0.0):
        self.tokens_per_step = tokens_per_step
        self.seconds = seconds
        """spent in steps, over all processes of the run"""
        self._recent: deque[float] = deque(maxlen=50)
        self._pauses: dict[str, float] = {}
        self._mark = time.monotonic()

    def begin(self) -> None:
        """Start the clock: the device gets the first step now."""
        self._mark = time.monotonic()

    def step_done(self) -> None:
        """Count the time since the last step."""
        now = time.monotonic()
        self._recent.append(now - self._mark)
        self.seconds += now - self._mark
        self._mark = now

    @contextmanager
    def pause(self, kind: str) -> Iterator[None]:
        """Time a block that stops the steps. The device must be idle when it begins."""
        began = time.monotonic()
        yield
        self._mark = time.monotonic()
        self._pauses[kind] = self._mark - began

    @property
    def last_seconds(self) -> float:
        """Duration of the last step that was counted."""
        return self._recent[-1]

    @property
    def tokens_per_second(self) -> float:
        """Rate of the last 50 steps; 0 before the first is done."""
        return self.tokens_per_step * len(self._recent) / sum(self._recent) if self._recent else 0.0

    def seconds_left(self, steps: int, pauses: Mapping[str, tuple[int, float]]) -> float:
        """Return the time for some steps and pauses, NaN before the first step.

        `pauses` are kind -> (number, duration in steps, used until one was timed).
        """
        if not self._recent:
            return float("nan")
        step = sum(self._recent) / len(self._recent)
        return steps * step + sum(
            count * self._pauses.get(kind, guess * step) for kind, (count, guess) in pauses.items()
        )


def clock(seconds: float) -> str:
    """Return `0:07`, `12:34`, `1:02:03`, or a dash for NaN."""
    if seconds != seconds:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def two_columns(rows: Mapping[str, str]) -> Table:
    """Return names and values as a table without lines."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


class Display:
    """Progress, samples and the summary of one run on a console."""

    def __init__(self, steps: int, console: Console | None = None):
        self.steps = steps
        self.console = console or Console()
        self._validation = ""
        self._bar: Progress | None = None
        self._last_line = 0
        """steps or parts done at the last plain line"""
        self._preparing: tuple[float, int] | None = None
        """time of the first call, and the parts done then"""

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self, done: int, of: int, description: str) -> None:
        self._stop()
        self._last_line = done
        if self.console.is_terminal:
            columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False)
            self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self._task = self._bar.add_task(description, total=of, completed=done)
            self._bar.start()

    def _advance(self, done: int, of: int, description: str, line: str) -> None:
        """Advance the bar; without one, print the line if another tenth is done."""
        if self._bar:
            self._bar.update(self._task, completed=done, description=description)
        elif done * PLAIN_LINES // of > self._last_line * PLAIN_LINES // of:
            self._last_line = done
            self.say(line)

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def say(self, text: str, style: str | None = None) -> None:
        """Print a text above the bar as it is, but for control characters."""
        self.console.print(Lines(text), style=style, soft_wrap=True)

    def preparing(self, done: int, of: int) -> None:
        """Show how many parts of the text are tokenized, here or in other processes."""
        if self._preparing is None:
            self._preparing = time.monotonic(), done
            self._start(done, of, "preparing the text")
        began, first = self._preparing
        seconds = (time.monotonic() - began) / (done - first) * (of - done) if done > first else float("nan")
        left = f"{clock(seconds)} left"
        self._advance(
            done, of, f"preparing the text, {left}", f"prepared {done} of {of} parts of the text, {left}"
        )
        if done == of:
            self._stop()
            self._preparing = None  # a mixture has several texts

    def begin(self, step: int) -> None:
        """Show the bar of training after `step` steps."""
        self._start(step, self.steps, "loss -")

    def progress(self, step: int, loss: float, rate: float, seconds_left: float) -> None:
        """Show that `step` steps are done; `loss` in nats per token, `rate` in tokens/s."""
        speed = f"{rate:,.0f} tokens/s", f"{clock(seconds_left)} left"
        description = "  ".join(filter(None, [f"loss {loss:.3f}", self._validation, *speed]))
        line = f"step {step}/{self.steps}: loss {loss:.3f}, {', '.join(speed)}"
        self._advance(step, self.steps, description, line)

    def validation(self, step: int, measured: str, best: bool) -> None:
        """Show a validation, in words."""
        self._validation = measured.rpartition(", ")[2]
        self.say(f"step {step}/{self.steps}: validation {measured}" + (", the best so far" if best else ""))

    def sample(self, step: int, text: str) -> None:
        """Show a text that the model wrote."""
        self.say(f"\nsample after step {step}:")
        self.say(text.strip() + "\n", style="italic" if self.console.is_terminal else None)

    def table(self, rows: Mapping[str, str], commands: Sequence[tuple[str, str]]) -> None:
        """Show the final numbers, and what to try next as (purpose, command)."""
        self._stop()
        self.console.print(two_columns(rows))
        self.say("\nworth trying next:")
        for purpose, command in commands:
            self.say(f"  {command}    # {purpose}")


@contextmanager
def steps_of_seeds(steps: int) -> Iterator[Callable[[str], None]]:
    """Show how many of `steps` steps of several runs are done; yields a function to be called after each, with a name.

    Where the output is not a terminal, there is a line for each name.
    """
    console = Console()
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task, shown, began = progress.add_task("", total=steps), "", time.monotonic()

        def advance(name: str) -> None:
            nonlocal shown
            progress.update(task, advance=1, description=name)
            if name != shown and not console.is_terminal:
                console.print(f"{clock(time.monotonic() - began)} {name}", highlight=False)
            shown = name

        yield advance
