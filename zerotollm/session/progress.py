"""What a person sees while a model trains: a live display on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from zerotollm.console import Console, Lines

PLAIN_LINES = 10
"""Progress lines of a whole run where the output is no terminal, besides one for each validation."""


class Pace:
    """How long a step takes and how long the rest will take.

    Only the time in which steps run counts towards the rate: no compilation, validation, sample or save.
    These are added to the time left at what they last took.
    """

    def __init__(self, tokens_per_step: float, seconds: float = 0.0):
        self.tokens_per_step = tokens_per_step
        self.seconds = seconds
        """spent in steps, over all processes of the run"""
        self._recent: deque[float] = deque(maxlen=50)
        self._pauses: dict[str, float] = {}
        self._mark = time.monotonic()

    def begin(self) -> None:
        """The first step is given to the device now."""
        self._mark = time.monotonic()

    def step_done(self) -> None:
        now = time.monotonic()
        self._recent.append(now - self._mark)
        self.seconds += now - self._mark
        self._mark = now

    @contextmanager
    def pause(self, kind: str) -> Iterator[None]:
        """Around what stops the steps. The device has nothing left to do when it begins."""
        begun = time.monotonic()
        yield
        self._mark = time.monotonic()
        self._pauses[kind] = self._mark - begun

    @property
    def tokens_per_second(self) -> float:
        """Of the last 50 steps; 0 before the first is done."""
        return self.tokens_per_step * len(self._recent) / sum(self._recent) if self._recent else 0.0

    def seconds_left(self, steps: int, pauses: Mapping[str, tuple[int, float]]) -> float:
        """Time for so many steps and pauses: kind -> (how many, a guess in steps until it was timed)."""
        if not self._recent:
            return float("nan")
        step = sum(self._recent) / len(self._recent)
        return steps * step + sum(
            count * self._pauses.get(kind, guess * step) for kind, (count, guess) in pauses.items()
        )


def clock(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`; a dash where the number is unknown."""
    if seconds != seconds:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def console_of(first: bool) -> Console:
    """The terminal, or of several processes, where this is not the first, nothing."""
    return Console(quiet=not first)


class Display:
    """Progress, samples and the summary of one run on a console."""

    def __init__(self, steps: int, console: Console | None = None):
        self.steps = steps
        self.console = console or Console()
        self._validation = ""
        self._last_line = 0
        self._bar: Progress | None = None
        self._preparing: tuple[float, int, int] | None = None
        """when it began, and how much was done then and at the last line"""

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """Text above the bar, as it is written but for control characters."""
        self.console.print(Lines(text), style=style, soft_wrap=True)

    def preparing(self, done: int, of: int) -> None:
        """So many parts of the text are tokens, here or in other processes."""
        now = time.monotonic()
        if self._preparing is None:
            self._preparing = (now, done, done)
            if self.console.is_terminal:
                columns = (TextColumn("preparing"), BarColumn(), TextColumn("{task.fields[left]} left"))
                self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
                self._task = self._bar.add_task("", total=of, completed=done, left="-")
                self._bar.start()
        begun, first, last = self._preparing
        left = clock((now - begun) / (done - first) * (of - done) if done > first else float("nan"))
        if self._bar:
            self._bar.update(self._task, completed=done, left=left)
        elif done * PLAIN_LINES // of > last * PLAIN_LINES // of:
            self._preparing = (begun, first, done)
            self.say(f"prepared {done} of {of} parts of the text, {left} left")
        if done == of and self._bar:
            self._bar.stop()
            self._bar = None

    def begin(self, step: int) -> None:
        """Shows the bar, `step` steps done."""
        if self._bar:
            self._bar.stop()
        self._last_line = step
        if self.console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[validation]}", markup=False),  # may name a file
                TextColumn("{task.fields[rate]} tokens/s"),
                TextColumn("{task.fields[left]} left"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self._task = self._bar.add_task(
                "", total=self.steps, completed=step, loss="-", validation="", rate="-", left="-"
            )
            self._bar.start()

    def progress(self, step: int, loss: float, rate: float, seconds_left: float) -> None:
        """`step` steps are done; `loss` in nats per token, `rate` in tokens/s."""
        if self._bar:
            self._bar.update(
                self._task,
                completed=step,
                loss=f"{loss:.3f}",
                validation=self._validation,
                rate=f"{rate:,.0f}",
                left=clock(seconds_left),
            )
        elif step * PLAIN_LINES // self.steps > self._last_line * PLAIN_LINES // self.steps:
            self._last_line = step
            self.say(
                f"step {step}/{self.steps}: loss {loss:.3f}, {rate:,.0f} tokens/s, {clock(seconds_left)} left"
            )

    def validation(self, step: int, measured: str, best: bool) -> None:
        """What was measured on the whole validation split, in words."""
        self._validation = measured.rpartition(", ")[2]
        self.say(f"step {step}/{self.steps}: validation {measured}" + (", the best so far" if best else ""))

    def sample(self, step: int, text: str) -> None:
        """What the model writes after `step` steps."""
        self.say(f"\nsample after step {step}:")
        self.say(text.strip() + "\n", style="italic" if self.console.is_terminal else None)

    def table(self, rows: Mapping[str, str], commands: Sequence[tuple[str, str]]) -> None:
        """The final numbers, and what is worth trying next: (purpose, command)."""
        if self._bar:
            self._bar.stop()
            self._bar = None
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in rows.items():
            table.add_row(name, value)
        self.console.print(table)
        self.say("\nworth trying next:")
        for purpose, command in commands:
            self.say(f"  {command}    # {purpose}")
