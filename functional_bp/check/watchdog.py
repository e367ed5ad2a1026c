"""A bound on the time that a person's Python code may take inside a check.

Stages look at the clock between calls. A forward or backward pass that never returns would keep
them from it, so it is interrupted, as Ctrl-C would do.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeUp(BaseException):
    """The time of a part of a check is up.

    No ``Exception``, as ``KeyboardInterrupt`` is none: code that handles errors lets it pass.
    """


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Raises ``TimeUp`` in the code inside once it has run for ``seconds``.

    In the main thread by an alarm signal, which ends a wait in the operating system as well;
    elsewhere, or where a program has its own alarm, at the next step of the interpreter. A call of
    compiled code is not interrupted before it returns.
    """
    if _alarm_is_free():
        yield from _by_alarm(seconds)
    else:
        yield from _by_thread(seconds)


def _alarm_is_free() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    )


def _by_alarm(seconds: float) -> Iterator[None]:
    def raise_it(_: int, __: FrameType | None) -> None:
        raise TimeUp

    signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _by_thread(seconds: float) -> Iterator[None]:
    watched, lock, over = threading.get_ident(), threading.Lock(), False

    def raise_it() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(watched), ctypes.py_object(TimeUp)
                )

    timer = threading.Timer(seconds, raise_it)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over = True
            # what was sent and has not arrived is taken back
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(watched), None)
