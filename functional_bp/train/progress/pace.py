"""How fast training goes, and how long it will take: from the steps that are done, not begun."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

WINDOW_SECONDS = 10.0  # that the rate is of; it follows a machine that becomes slower


@dataclass(frozen=True)
class Status:
    """A moment of training, as a display shows it.

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
    """Rates over the last seconds and over an epoch.

    The first step, which is compiled, does not count; nor does the time of validation.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int, int]] = deque()  # time, steps, examples
        self._begin: tuple[float, int, int] | None = None
        self._mean: tuple[float, float] | None = None  # steps, examples a second, last epoch
        self._beside_seconds = 0.0  # of the last epoch, after its steps
        self._first = True

    def begin_epoch(self, now: float) -> None:
        """No step of the epoch is done."""
        self._marks.clear()
        self._begin = None
        if not self._first:
            self.mark(now, 0, 0)

    def mark(self, now: float, steps: int, examples: int) -> None:
        """So many steps and examples of this epoch are done, the device's work on them too."""
        self._first = False
        self._begin = self._begin or (now, steps, examples)
        self._marks.append((now, steps, examples))
        while len(self._marks) > 2 and self._marks[1][0] < now - WINDOW_SECONDS:
            self._marks.popleft()

    def end_steps(self) -> None:
        """The last step of the epoch is done and marked."""
        if self._begin is not None:
            self._mean = _per_second(self._begin, self._marks[-1]) or self._mean

    def end_epoch(self, now: float) -> None:
        """The epoch is over, its validation too."""
        if self._marks:
            self._beside_seconds = now - self._marks[-1][0]

    @property
    def mean(self) -> tuple[float, float] | None:
        """Steps and examples per second, of the last epoch that ended."""
        return self._mean

    @property
    def now(self) -> tuple[float, float] | None:
        """Steps and examples per second, of the last seconds, or of the last epoch."""
        here = _per_second(self._marks[0], self._marks[-1]) if self._marks else None
        return here or self._mean

    def left_seconds(self, steps: int, total: int | None) -> float | None:
        """Until the last step of the epoch."""
        if total is None or self.now is None:
            return None
        return max(0, total - steps) / self.now[0]

    def run_left_seconds(self, steps: int, total: int | None, epochs: int) -> float | None:
        """Until this epoch and ``epochs`` more are over, with what comes after their steps."""
        here, whole = self.left_seconds(steps, total), self.left_seconds(0, total)
        if here is None or whole is None:
            return None
        return here + epochs * whole + (epochs + 1) * self._beside_seconds


def _per_second(first: Any, last: Any) -> tuple[float, float] | None:
    seconds = last[0] - first[0]
    if seconds <= 0 or last[1] <= first[1]:
        return None
    return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds


def duration(seconds: float) -> str:
    """A time as it is said.

    Example:
        >>> [duration(s) for s in (0.04, 3.21, 59.6, 65, 7380, 100000)]
        ['0.0 s', '3.2 s', '1 min 00 s', '1 min 05 s', '2 h 03 min', '1 d 04 h']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def rate_text(rate: float | None, per_example: bool) -> str:
    """A rate as it is said; nothing where there is none.

    Example:
        >>> rate_text(41234.5, True), rate_text(3.21, False), rate_text(0.0321, True)
        ('41,234 examples/s', '3.2 steps/s', '0.032 examples/s')
    """
    if rate is None:
        return ""
    number = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
    return f"{number} {'examples' if per_example else 'steps'}/s"


def left_text(status: Status, short: bool = False) -> str:
    """The time left, of the epoch and of all of them; nothing where it is not known.

    Args:
        status: the moment.
        short: whether only the epoch's is said.

    Example:
        >>> left_text(Status(2, 50, 120, 400, 1.0, True, 3.0, 12.3, 580.0))
        '12 s left, 9 min 40 s for all epochs'
    """
    if status.phase == "compiling":
        return "compiling the step"
    if status.phase == "validating":
        return "validating"
    if status.left_seconds is None or status.phase in ("done", "stopped"):
        return ""
    left = f"{duration(status.left_seconds)} left"
    if not short and status.epoch + 1 < status.epochs and status.run_left_seconds is not None:
        left += f", {duration(status.run_left_seconds)} for all epochs"
    return left
