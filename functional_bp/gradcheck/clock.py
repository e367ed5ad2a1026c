"""Two clocks bound a check: an alarm ends a person's code, and a search looks at its own.

Stages look at the clock between calls. A forward or backward pass that never returns would keep
them from it, so it is interrupted, as Ctrl-C would do. A diagnosis has a clock on which it searches
as far on a busy machine as on a quiet one, but later.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

WHILE_IT_ARRIVES = 10_000  # turns of a loop in which an exception that was sent is raised


class TimeUp(BaseException):
    """The time of a part of a check is up.

    No ``Exception``, as ``KeyboardInterrupt`` is none: code that handles errors lets it pass.
    """


class _Here(threading.local):
    """Whether this thread is watched already."""

    watched = False


_here = _Here()


def watchdog(seconds: float) -> AbstractContextManager[None]:
    """Raise ``TimeUp`` in the code inside once it has run for ``seconds``.

    In the main thread by an alarm signal, which ends a wait in the operating system as well;
    elsewhere, or where a program has its own alarm, at the next step of the interpreter. A call of
    compiled code is not interrupted before it returns. Inside another watchdog it does nothing.
    """
    if _here.watched:
        return nullcontext()
    return _by_alarm(seconds) if _alarm_is_free() else _by_thread(seconds)


def _alarm_is_free() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    )


@contextmanager
def _by_alarm(seconds: float) -> Iterator[None]:
    def raise_it(_: int, __: FrameType | None) -> None:
        raise TimeUp

    signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    _here.watched = True
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _here.watched = False


@contextmanager
def _by_thread(seconds: float) -> Iterator[None]:
    watched, lock, over, sent = threading.get_ident(), threading.Lock(), False, False

    def raise_it() -> None:
        nonlocal sent
        with lock:
            if not over:
                sent = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(watched), ctypes.py_object(TimeUp)
                )

    timer = threading.Timer(max(seconds, 1e-3), raise_it)
    timer.daemon = True
    timer.start()
    _here.watched = True
    arrived = False
    try:
        yield
    except TimeUp:
        arrived = True
        raise
    finally:
        _here.watched = False
        timer.cancel()
        with lock:
            over = True
        if sent and not arrived:
            # It is waited for. Taking it back leaves the interpreter's request for attention up,
            # on which CPython 3.11 spins for ever in a function that is profiled.
            try:
                for _ in range(WHILE_IT_ARRIVES):
                    pass
            except TimeUp:
                pass


WORKED = 0.75  # how much of the clock stands still while the thread waits for a processor


def now() -> float:
    """Return the seconds that have passed, of which those without a processor count a quarter.

    So a search for *n* seconds takes n where nothing else runs, and at most 4 n.
    """
    return WORKED * time.thread_time() + (1 - WORKED) * time.monotonic()


class TimeLimit:
    """The seconds of ``now()`` that a search may take, and whether they ended it.

    A search is bounded by what it tries; where time ends it before that, the report says so.
    """

    def __init__(self, seconds: float, whole: TimeLimit | None = None) -> None:
        self.start, self.seconds, self.whole = now(), seconds, whole
        self.was_reached = False

    @property
    def is_reached(self) -> bool:
        """Whether time is up; to be asked where something is left to do."""
        if now() - self.start <= self.seconds:
            return False
        limit: TimeLimit | None = self
        while limit is not None:
            limit.was_reached, limit = True, limit.whole
        return True

    def until(self, share: float) -> TimeLimit:
        """A limit that is reached when this share of the time has passed since the start."""
        part = TimeLimit(share * self.seconds, self)
        part.start = self.start
        return part
