"""Progress is shown while training goes on: a bar in a terminal or a notebook, lines elsewhere.

A step costs a count and a look at the clock. The device is asked for its numbers only when the
display is drawn, ten times a second at most, and drawing takes a small part of the time. Rates are
of the steps that are done, not of those that were begun.
"""

from __future__ import annotations

import html
import math
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from functional_bp import processes
from functional_bp.gradcheck.guard import Guard
from functional_bp.train.data import DataError
from functional_bp.train.history import html_table, ordered, shown

WINDOW_SECONDS = 10.0  # that the rate is of; it follows a machine that becomes slower
DRAWING_SHARE = 0.01  # of the time, at most
BAR_WIDTH, LEAST_BAR_WIDTH = 30, 8  # characters
LINE_SECONDS = 60.0  # between lines within an epoch, where there is no bar
KEPT_SECONDS = 0.2  # between prints above a bar, each of all lines of epochs finished since
NOTEBOOK_ROWS = 8  # of the last epochs
SPACE = "  "  # between the parts of a line
NOT_FINITE = r"\b(nan|inf)\b"

Read = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Status:
    """A status is a moment of training, as a display shows it.

    Attributes:
        epoch: the epoch's number, from 0.
        epochs: how many there will be.
        steps: done in this epoch.
        steps_per_epoch: None where it is not known.
        rate: examples per second, or steps per second; None before there is one.
        per_example: whether the rate is of examples.
        seconds: that the epoch took until now.
        left_seconds: until the last step of the epoch; None where that is not known.
        run_left_seconds: until the last epoch is over; None where that is not known.
        logs: the means over the epoch until now, and at its end those of validation.
        phase: "compiling", "training", "validating", "done" with the epoch, or "stopped" in it.
    """

    epoch: int
    epochs: int
    steps: int
    steps_per_epoch: int | None
    rate: float | None
    per_example: bool
    seconds: float
    left_seconds: float | None
    run_left_seconds: float | None
    logs: dict[str, float] = field(default_factory=dict)
    phase: str = "training"


class Pace:
    """Rates are measured over the last seconds and over an epoch.

    The first step, which is compiled, does not count; nor does the time of validation.

    Attributes:
        mean: steps and examples per second, of the last epoch that ended.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int, int]] = deque()  # time, steps, examples
        self._begin: tuple[float, int, int] | None = None
        self.mean: tuple[float, float] | None = None
        self._beside_seconds = 0.0  # of the last epoch, after its steps

    def begin_epoch(self, now: float) -> None:
        """No step of the epoch is done; of the first one, the first step will be compiled."""
        compiled, self._begin = bool(self._marks), None
        self._marks.clear()
        if compiled:
            self.mark(now, 0, 0)

    def mark(self, now: float, steps: int, examples: int) -> None:
        """So many steps and examples of this epoch are done, the device's work on them too."""
        self._begin = self._begin or (now, steps, examples)
        self._marks.append((now, steps, examples))
        while len(self._marks) > 2 and self._marks[1][0] < now - WINDOW_SECONDS:
            self._marks.popleft()

    def end_steps(self) -> None:
        """The last step of the epoch is done and marked."""
        if self._begin is not None:
            self.mean = _per_second(self._begin, self._marks[-1]) or self.mean

    def end_epoch(self, now: float) -> None:
        """The epoch is over, its validation too."""
        if self._marks:
            self._beside_seconds = now - self._marks[-1][0]

    @property
    def now(self) -> tuple[float, float] | None:
        """The rate is of steps and examples per second, in the last seconds or the last epoch."""
        here = _per_second(self._marks[0], self._marks[-1]) if self._marks else None
        return here or self.mean

    def left_seconds(self, steps: int, total: int | None) -> float | None:
        """The last step of the epoch is so far off."""
        if total is None or self.now is None:
            return None
        return max(0, total - steps) / self.now[0]

    def run_left_seconds(self, steps: int, total: int | None, epochs: int) -> float | None:
        """The end of this epoch and ``epochs`` more is so far off, validation included."""
        here, whole = self.left_seconds(steps, total), self.left_seconds(0, total)
        if here is None or whole is None:
            return None
        return here + epochs * whole + (epochs + 1) * self._beside_seconds


def _per_second(first: Any, last: Any) -> tuple[float, float] | None:
    seconds = last[0] - first[0]
    if seconds <= 0 or last[1] <= first[1]:
        return None
    return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds


class Silent:
    """Silent progress shows nothing and reads nothing; its methods are those of ``Progress``."""

    def __enter__(self) -> Self:
        return self

    def _nothing(self, *arguments: Any, **options: Any) -> None: ...

    __exit__ = epoch = step = validate = end_epoch = note = _nothing


class Progress:
    """Progress counts steps and has a display show them; ``progress`` says with what arguments.

    Where ``steps_per_epoch`` is not known, it is the number of the first epoch after that.
    """

    def __init__(
        self,
        display: Display,
        epochs: int,
        steps_per_epoch: int | None = None,
        read: Read | None = None,
    ) -> None:
        self._read = read
        self._display, self._epochs, self._total = display, epochs, steps_per_epoch
        self._pace = Pace()
        self._epoch, self._open = 0, False
        self._steps = self._first = self._examples = 0
        self._logs: dict[str, float] = {}
        self._started = 0.0
        self._next = 0.0  # the time at which the display is drawn again
        self._phase = "compiling"

    def __enter__(self) -> Self:
        self._display.open()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._open and self._steps > self._first:
            self._phase = "stopped"
            with Guard("reading numbers"):  # what ended training may have taken them
                self._fetch()
            self._display.keep(self._status(time.perf_counter()))
        self._display.close()

    def epoch(self, e: int, *, start: int = 0) -> None:
        """Epoch ``e`` begins, of which ``start`` steps were done before a resume."""
        self._epoch, self._open = e, True
        self._steps = self._first = start
        self._examples, self._logs = 0, {}
        self._started = time.perf_counter()
        self._pace.begin_epoch(self._started)
        if self._phase == "compiling":
            self._draw(self._started)
            self._next = 0.0
        else:
            self._phase = "training"

    def step(self, k: int, examples: int = 0) -> None:
        """The epoch's k-th step was given to the device, its examples 0 where that is not known."""
        self._steps = k
        self._examples += examples
        if time.perf_counter() >= self._next:
            self._phase = "training"
            self._fetch()
            self._draw(time.perf_counter())

    def _fetch(self) -> None:
        """The means until now; waits for the steps that were begun, so they are done then."""
        if self._read is not None:
            self._logs = _numbers(self._read())
        done = self._steps - self._first
        self._pace.mark(time.perf_counter(), done, self._examples)

    def _draw(self, now: float) -> None:
        self._display.show(self._status(now))
        end = time.perf_counter()
        wait = (end - now) / DRAWING_SHARE
        self._next = end + max(self._display.interval_seconds, wait)

    def validate(self) -> None:
        """The steps of the epoch are over, its validation begins."""
        self._fetch()
        self._pace.end_steps()
        self._phase = "validating"
        now = time.perf_counter()
        if now - self._started >= self._display.interval_seconds:  # else no one would read it
            self._draw(now)

    def end_epoch(self, logs: Mapping[str, Any]) -> None:
        """An epoch is over, in which this was measured."""
        now = time.perf_counter()
        if self._phase != "validating":
            self._pace.mark(now, self._steps - self._first, self._examples)
            self._pace.end_steps()
        self._logs, self._phase, self._open = _numbers(logs), "done", False
        self._total = self._total or self._steps
        self._pace.end_epoch(now)
        self._display.keep(self._status(now))

    def note(self, text: str) -> None:
        """A text is shown that stays on the screen."""
        self._display.note(text)

    def _status(self, now: float) -> Status:
        pace = self._pace.mean if self._phase in ("validating", "done") else self._pace.now
        per_example = self._examples > 0 or not self._steps
        more = self._epochs - self._epoch - 1
        return Status(
            self._epoch, self._epochs, self._steps, self._total,
            pace and pace[1 if per_example else 0], per_example, now - self._started,
            self._pace.left_seconds(self._steps, self._total),
            self._pace.run_left_seconds(self._steps, self._total, more),
            self._logs, self._phase,
        )  # fmt: skip


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Numbers on the host; of what is no single number, nothing."""
    arrays = {name: np.asarray(value) for name, value in logs.items()}
    return {name: float(a) for name, a in arrays.items() if a.ndim == 0 and a.dtype != object}


def progress(
    verbose: str | int | bool = "auto",
    epochs: int = 1,
    steps_per_epoch: int | None = None,
    *,
    read: Read | None = None,
) -> Progress | Silent:
    """A training loop's progress is a context.

    Args:
        verbose: "auto" or 1 for a bar in a terminal or a notebook and lines elsewhere, 2 for a
            line an epoch, 0 for nothing. Above the bar stay the lines of finished epochs.
        epochs: how many there will be.
        steps_per_epoch: None where it is not known.
        read: returns the means of the epoch until now, by name; called when it is drawn, and arrays
            of a device are waited for then.

    Raises:
        DataError: ``verbose`` is something else.

    Example:
        >>> with progress(0, epochs=1, steps_per_epoch=2) as shown:
        ...     shown.epoch(0)
        ...     for k in range(2):
        ...         shown.step(k + 1, examples=32)
        ...     shown.end_epoch({"loss": 0.5})
    """
    if verbose not in ("auto", 0, 1, 2):
        raise DataError(
            "verbose cannot be used", got=f"verbose = {verbose!r}",
            expected='"auto", 0 (nothing), 1 (a bar) or 2 (a line an epoch)'
        )  # fmt: skip
    if not verbose or not processes.speaks():
        return Silent()
    return Progress(display_for(bar=verbose != 2), epochs, steps_per_epoch, read)


def display_for(bar: bool) -> Display:
    """A display is chosen that fits where this runs; lines where no bar is wanted."""
    if not bar:
        return Lines()
    if in_notebook():
        return Notebook()
    console = Console(highlight=False)
    return Terminal(console) if console.is_terminal and not console.is_dumb_terminal else Lines()


def in_notebook() -> bool:
    """It is true in a kernel of Jupyter, which displays HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


# What is said of a moment.


def duration(seconds: float) -> str:
    """A time is said in one or two units.

    Example:
        >>> [duration(s) for s in (0.04, 3.21, 59.6, 65, 7380, 100000)]
        ['0.0 s', '3.2 s', '1 min 00 s', '1 min 05 s', '2 h 03 min', '1 d 04 h']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole, minutes, hours = round(seconds), round(seconds / 60), round(seconds / 3600)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def rate_text(rate: float | None, per_example: bool) -> str:
    """A rate is said with its unit; nothing where there is none.

    Example:
        >>> rate_text(41234.5, True), rate_text(3.21, False), rate_text(0.0321, True)
        ('41,234 examples/s', '3.2 steps/s', '0.032 examples/s')
    """
    if rate is None:
        return ""
    number = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
    return f"{number} {'examples' if per_example else 'steps'}/s"


def left_text(status: Status, short: bool = False) -> str:
    """The time left is said, of the epoch and, unless ``short``, of all; nothing if not known.

    Example:
        >>> left_text(Status(2, 50, 120, 400, 1.0, True, 3.0, 12.3, 580.0))
        '12 s left, 9 min 40 s for all epochs'
    """
    if status.phase in ("compiling", "validating"):
        return "compiling the step" if status.phase == "compiling" else "validating"
    if status.left_seconds is None or status.phase in ("done", "stopped"):
        return ""
    left = f"{duration(status.left_seconds)} left"
    if not short and status.epoch + 1 < status.epochs and status.run_left_seconds is not None:
        left += f", {duration(status.run_left_seconds)} for all epochs"
    return left


def epoch_text(status: Status) -> str:
    """The epoch's number is said among all, of one width in all lines."""
    return f"epoch {status.epoch + 1:{len(str(status.epochs))}d}/{status.epochs}"


def steps_text(status: Status) -> str:
    """The steps done are said, among all if that is known."""
    if status.steps_per_epoch is None:
        return f"{status.steps:,} steps"
    return f"{status.steps:,}/{status.steps_per_epoch:,}"


def logs_texts(status: Status) -> list[str]:
    """The logs are said by name, the loss first."""
    return [f"{name} {shown(status.logs[name])}" for name in ordered(status.logs)]


def parts_of(status: Status) -> list[str]:
    """A moment of training is said in these parts of a line."""
    parts = [epoch_text(status)]
    if status.phase != "done":
        parts += [steps_text(status), left_text(status)]
    if status.phase in ("done", "stopped"):
        parts += [duration(status.seconds)]
    parts += [rate_text(status.rate, status.per_example), *logs_texts(status)]
    return [part for part in parts if part]


def line(status: Status) -> str:
    """A moment of training is said in one line of text."""
    return SPACE.join(parts_of(status))


def folded(parts: list[str], width: int, indent: int) -> str:
    """Parts of a line go on in lines below, indented, where a terminal is narrow.

    Example:
        >>> print(folded(["epoch 1/3", "loss 0.5", "accuracy 0.9"], 24, 11))
        epoch 1/3  loss 0.5
                   accuracy 0.9
    """
    whole = SPACE.join(part.replace(" ", "\xa0") for part in parts)  # a part is not broken
    rows = textwrap.wrap(
        whole, width, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(rows).replace("\xa0", " ")


# Displays.


class Display:
    """A display shows moments of training.

    Attributes:
        interval_seconds: between two of them, at least.
    """

    interval_seconds = 0.0

    def open(self) -> None:
        """Training begins."""

    def show(self, status: Status) -> None:
        """A moment within an epoch is shown."""

    def keep(self, status: Status) -> None:
        """The end of an epoch, or of training within one, is shown to stay on the screen."""

    def note(self, text: str) -> None:
        """A text is shown that stays on the screen."""

    def close(self) -> None:
        """Training is over."""


class Lines(Display):
    """Lines are printed: one for every epoch, and one a minute within long ones."""

    interval_seconds = LINE_SECONDS
    _first = True

    def show(self, status: Status) -> None:
        """A line is printed; not for the first step, which says little."""
        if not self._first:
            self.keep(status)
        self._first = status.phase == "compiling"

    def keep(self, status: Status) -> None:
        """A line is printed."""
        self.note(line(status))

    def note(self, text: str) -> None:
        """The text is printed."""
        print(text, file=sys.stdout, flush=True)


def meter(status: Status, width: int) -> Group:
    """The epoch's number, a bar, steps, time left and rate, as there is room, above the logs."""
    name = epoch_text(status)
    words, left = _fitted(status, width)
    cells: list[Any] = [Text(f"{name} ", "bold"), Text(words)]
    if status.steps_per_epoch and left >= LEAST_BAR_WIDTH:
        bar = ProgressBar(
            status.steps_per_epoch, status.steps, min(BAR_WIDTH, left), complete_style="blue"
        )
        cells[1:] = [bar, Text(f" {words}")]
    row = Table.grid(padding=(0, 1))
    row.add_row(*cells)
    indent = len(name) + len(SPACE)
    logs = folded(logs_texts(status), width - indent, 0)
    below = Text(textwrap.indent(logs, " " * indent))
    below.highlight_regex(NOT_FINITE, "bold red")
    return Group(row, *([below] if logs else []))


def _fitted(status: Status, width: int) -> tuple[str, int]:
    """What is said beside the bar, less where it is narrow, and the width that is left."""
    steps, rate = steps_text(status), rate_text(status.rate, status.per_example)
    whole, short = left_text(status), left_text(status, short=True)
    width -= len(epoch_text(status)) + 4
    for words in ([steps, whole, rate], [steps, short, rate], [steps, short]):
        text = SPACE.join(word for word in words if word)
        if width - len(text) >= LEAST_BAR_WIDTH:
            break
    return text, width - len(text)


class Terminal(Display):
    """A terminal has two lines at its bottom, with finished epochs above them."""

    interval_seconds = 0.1

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._finished: list[Text] = []  # lines that wait to be printed together
        self._printed = -math.inf

    def open(self) -> None:
        """It takes the bottom of the screen."""
        self._live.start()

    def show(self, status: Status) -> None:
        """The bar is drawn, below the lines that waited long enough."""
        if time.perf_counter() - self._printed >= KEPT_SECONDS:
            self._print_finished()
        self._live.update(meter(status, self._live.console.width), refresh=True)

    def keep(self, status: Status) -> None:
        """The line of a finished epoch is printed, with those before it where they come fast."""
        name = epoch_text(status)
        text = Text(folded(parts_of(status), self._live.console.width, len(name) + len(SPACE)))
        text.stylize("bold", 0, len(name))
        text.highlight_regex(r"[\d,.]+ (examples|steps)/s", "dim")
        text.highlight_regex(NOT_FINITE, "bold red")
        self._finished.append(text)
        last = status.epoch + 1 == status.epochs or status.phase != "done"
        if last or time.perf_counter() - self._printed >= KEPT_SECONDS:
            self._print_finished()
            self.show(status)

    def _print_finished(self) -> None:
        if self._finished:
            self._live.console.print(Text("\n").join(self._finished))
            self._finished, self._printed = [], time.perf_counter()

    def note(self, text: str) -> None:
        """A text is printed above the bar."""
        self._print_finished()
        self._live.console.print(text, markup=False)

    def close(self) -> None:
        """It gives the bottom of the screen back."""
        self._print_finished()
        self._live.stop()


class Notebook(Display):
    """A box in a notebook is drawn again and again: a bar above a table of epochs."""

    interval_seconds = 0.2

    def __init__(self) -> None:
        self._handle: Any = None
        self._rows: list[Status] = []
        self._notes: list[str] = []
        self._drawn = -math.inf
        self._last: Status | None = None

    def show(self, status: Status) -> None:
        """The box is drawn."""
        self._last = status
        self._draw()

    def keep(self, status: Status) -> None:
        """The table has one row more; it is drawn with the next moment, where they come fast."""
        self._last = status
        self._rows = [*self._rows[1 - NOTEBOOK_ROWS :], status]
        if time.perf_counter() - self._drawn >= self.interval_seconds:
            self._draw()

    def note(self, text: str) -> None:
        """The text becomes a line below the table."""
        self._notes.append(text)
        self._draw()

    def close(self) -> None:
        """The last moment is drawn."""
        if self._last is not None:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML, display

        box = HTML(page(self._last, self._rows, self._notes))
        if self._handle is None:
            self._handle = display(box, display_id=True)
        else:
            self._handle.update(box)
        self._drawn = time.perf_counter()


def page(status: Status | None, rows: list[Status], notes: list[str]) -> str:
    """The box as HTML takes the colours of the notebook, light or dark."""
    parts = [] if status is None else [_heading(status)]
    if status is not None and status.phase == "training" and status.logs:
        rows = [*rows, status]
    if rows:
        parts.append(_table(rows))
    parts += [f"<div>{html.escape(text)}</div>" for text in notes]
    return f'<div style="font-variant-numeric:tabular-nums">{"".join(parts)}</div>'


def _heading(status: Status) -> str:
    words = [steps_text(status), left_text(status), rate_text(status.rate, status.per_example)]
    text = html.escape(" · ".join(word for word in words if word))
    made = ""
    if status.steps_per_epoch:
        percent = min(100.0, 100 * status.steps / status.steps_per_epoch)
        made = (
            f'<div role="progressbar" aria-valuenow="{percent:.0f}" style="display:inline-block;'
            "width:16em;height:.6em;margin:0 .8em;border-radius:.3em;overflow:hidden;"
            'background:rgba(128,128,128,.3)">'
            f'<div style="width:{percent:.1f}%;height:100%;background:#2f6fb3"></div></div>'
        )
    return f"<div><b>{html.escape(epoch_text(status))}</b>{made} {text}</div>"


def _table(rows: list[Status]) -> str:
    names = ordered(name for status in rows for name in status.logs)
    listed = []
    for status in rows:
        numbers = [shown(status.logs[name]) if name in status.logs else "" for name in names]
        dim = "" if status.phase == "done" else ' style="opacity:.6"'
        listed.append((dim, [str(status.epoch + 1), duration(status.seconds), *numbers]))
    return html_table(["epoch", "time", *names], listed, ".1em 1em .1em 0")
