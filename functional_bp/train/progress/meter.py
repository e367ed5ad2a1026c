"""Progress of training while it goes on: a bar in a terminal or a notebook, lines elsewhere.

A step costs a count and a look at the clock. The device is asked for its numbers only when the
display is drawn, ten times a second at most, and drawing takes a small part of the time.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from functional_bp.errors import compose
from functional_bp.train.data.checks import DataError
from functional_bp.train.progress.pace import Pace, Status

DRAWING_SHARE = 0.01  # of the time, at most
Read = Callable[[], Mapping[str, Any]]


class Display(Protocol):
    """What shows moments of training.

    Attributes:
        interval_seconds: between two of them, at least.
    """

    interval_seconds: float

    def open(self) -> None:
        """Training begins."""
        ...

    def show(self, status: Status) -> None:
        """A moment within an epoch."""
        ...

    def keep(self, status: Status) -> None:
        """The end of an epoch, or of training within one: to stay on the screen."""
        ...

    def note(self, text: str) -> None:
        """Something to be read, which stays on the screen."""
        ...

    def close(self) -> None:
        """Training is over."""
        ...


class Silent:
    """Progress that shows nothing; the methods are those of ``Progress``."""

    read: Read | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def epoch(self, e: int, *, steps: int | None = None, start: int = 0) -> None:
        """Nothing."""

    def step(self, k: int, examples: int = 0) -> None:
        """Nothing."""

    def validate(self) -> None:
        """Nothing."""

    def end_epoch(self, logs: Mapping[str, Any]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class Progress:
    """Counts steps and has a display show them.

    Args:
        display: what shows them.
        epochs: how many there will be.
        steps_per_epoch: None where it is not known; after an epoch it is that epoch's number.
        read: returns the means of the epoch until now, by name. Called when the display is drawn;
            arrays of a device are waited for then.
    """

    def __init__(
        self,
        display: Display,
        epochs: int,
        steps_per_epoch: int | None = None,
        read: Read | None = None,
    ) -> None:
        self.read = read
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open and self._steps > self._first:
            self._phase = "stopped"
            with contextlib.suppress(Exception):  # what ended training may have taken the numbers
                self._fetch()
            self._display.keep(self._status(time.perf_counter()))
        self._display.close()

    def epoch(self, e: int, *, steps: int | None = None, start: int = 0) -> None:
        """An epoch begins.

        Args:
            e: its number, from 0.
            steps: how many it has, if that is known now and was not before.
            start: the number of steps that were done before a resume.
        """
        self._epoch, self._open = e, True
        self._total = steps or self._total
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
        """A step was given to the device.

        Args:
            k: how many were in this epoch, with this one.
            examples: in its batch; 0 where that is not known.
        """
        self._steps = k
        self._examples += examples
        if time.perf_counter() >= self._next:
            self._redraw()

    def _redraw(self) -> None:
        self._phase = "training"
        self._fetch()
        self._draw(time.perf_counter())

    def _fetch(self) -> None:
        """The means until now; waits for the steps that were begun, so they are done then."""
        if self.read is not None:
            self._logs = _numbers(self.read())
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
        """An epoch is over.

        Args:
            logs: all that was measured in it.
        """
        now = time.perf_counter()
        if self._phase != "validating":
            self._pace.mark(now, self._steps - self._first, self._examples)
            self._pace.end_steps()
        self._logs, self._phase, self._open = _numbers(logs), "done", False
        self._total = self._total or self._steps
        self._pace.end_epoch(now)
        self._display.keep(self._status(now))

    def note(self, text: str) -> None:
        """Show a text that stays on the screen."""
        self._display.note(text)

    def _status(self, now: float) -> Status:
        pace = self._pace.mean if self._phase in ("validating", "done") else self._pace.now
        per_example = self._examples > 0 or not self._steps
        left = self._pace.left_seconds(self._steps, self._total)
        more = self._epochs - self._epoch - 1
        return Status(
            epoch=self._epoch,
            epochs=self._epochs,
            steps=self._steps,
            steps_per_epoch=self._total,
            rate=pace and pace[1 if per_example else 0],
            per_example=per_example,
            seconds=now - self._started,
            left_seconds=left,
            run_left_seconds=self._pace.run_left_seconds(self._steps, self._total, more),
            logs=self._logs,
            phase=self._phase,
        )


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
    """Progress for a training loop, to be used as a context.

    Args:
        verbose: "auto" or 1 for a bar in a terminal or a notebook and lines elsewhere, 2 for a
            line an epoch, 0 for nothing. Above the bar stay the lines of finished epochs; where
            they come faster than anyone reads, only some of them.
        epochs: how many there will be.
        steps_per_epoch: None where it is not known.
        read: returns the means of the epoch until now, by name; called when it is drawn.

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
            compose(
                "verbose cannot be used",
                got=f"verbose = {verbose!r}",
                expected='"auto", 0 (nothing), 1 (a bar) or 2 (a line an epoch)',
            )
        )
    if not verbose:
        return Silent()
    return Progress(_display(verbose != 2), epochs, steps_per_epoch, read)


def _display(bar: bool) -> Display:
    """What fits where this runs."""
    from functional_bp.train.progress.displays import Bar, Lines, Notebook

    if not bar:
        return Lines()
    if in_notebook():
        return Notebook()
    from rich.console import Console

    console = Console(highlight=False)
    return Bar(console) if console.is_terminal and not console.is_dumb_terminal else Lines()


def in_notebook() -> bool:
    """Whether this runs in a kernel of Jupyter, which displays HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
