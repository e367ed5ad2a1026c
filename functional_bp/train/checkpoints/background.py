"""One piece of work behind a program's back, done to its end also where the program ends before."""

from __future__ import annotations

import atexit
import functools
import sys
import threading
import traceback
import weakref
from collections.abc import Callable


class Background:
    """A thread for one piece of work at a time; Ctrl-C never lands in it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; the work before this one has been waited for."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        _finish_at_exit()
        _at_work.add(self)
        self._thread = threading.Thread(target=run, name="functional_bp checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until it is done; raises what it raised, once."""
        if self._thread is not None:
            if self._thread.ident is not None:  # else Ctrl-C came before it began
                self._thread.join()  # Ctrl-C here leaves it to be waited for again
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


_at_work: weakref.WeakSet[Background] = weakref.WeakSet()


@functools.cache
def _finish_at_exit() -> None:
    """Once for a program: what is at work when it ends is waited for.

    Orbax takes threads of pools, which Python refuses as soon as it begins to end. What ``atexit``
    calls comes after that; what ``threading`` calls, as those pools use it themselves, before.
    """
    getattr(threading, "_register_atexit", atexit.register)(_finish)


def _finish() -> None:
    for background in list(_at_work):
        try:
            background.wait()
        except BaseException:
            print("a checkpoint could not be written", file=sys.stderr)
            traceback.print_exc()
