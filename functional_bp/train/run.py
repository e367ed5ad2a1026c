"""One run of ``fit``: what it knows of itself, what callbacks see of it, and how it is stopped."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from functional_bp.train.history import History
from functional_bp.train.state import TrainState


class Run:
    """What callbacks are given.

    Attributes:
        state: the present state; a callback may replace it between epochs.
        history: the numbers of every finished epoch.
        epoch: which epoch runs, from 0.
        step: how many steps were taken in all.
        stopped: why the run ends early, or None.
    """

    def __init__(self, state: TrainState, history: History, step: int) -> None:
        self.state, self.history, self.step = state, history, step
        self.epoch = 0
        self.stopped: str | None = None

    def stop(self, reason: str) -> None:
        """End the run after this step; the first reason given is kept."""
        self.stopped = self.stopped or reason


class Interrupts:
    """Ctrl-C ends a run between two steps, where nothing is half done; a second one at once.

    A step's buffers are donated: an exception between the call of a step and the assignment of
    its result would lose both the old state and the new one.
    """

    def __init__(self) -> None:
        self.asked = False
        self.waiting = False  # for data: nothing is half done, and it may last

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked or self.waiting:
            raise KeyboardInterrupt
        self.asked = True

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Listen while the block runs; only a main thread can, and what is ignored stays so."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            yield
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class Started(NamedTuple):
    """A step that was started, of which it is not known yet whether its numbers are finite.

    Attributes:
        step: its number, the state's before it.
        bad: on the device: the first step that was not finite, or −1.
        batch: what it was given.
        batches: how many of the epoch were done before it.
    """

    step: int
    bad: jax.Array
    batch: Any
    batches: int


class Window:
    """The last steps, until they are known to be finite.

    Whether a step was good is read from the device some steps later, when it is ready, so that
    the device is never waited for; reading it also keeps Python from running far ahead.
    """

    LENGTH = 8  # steps between two readings

    def __init__(self) -> None:
        self._steps: deque[Started] = deque()

    def add(self, started: Started) -> Started | None:
        """Note a step; returns one known to be bad, or None."""
        self._steps.append(started)
        return self._read(self.LENGTH) if len(self._steps) >= 2 * self.LENGTH else None

    def drain(self) -> Started | None:
        """Wait for all steps; returns the one that was bad, or None."""
        return self._read(len(self._steps)) if self._steps else None

    def _read(self, count: int) -> Started | None:
        bad = int(self._steps[count - 1].bad)
        if bad >= 0:
            return next(started for started in self._steps if started.step == bad)
        for _ in range(count):
            self._steps.popleft()
        return None
