"""A guard around a person's code: what it raises is noted and counted, and the check goes on.

A check runs code that may raise anything, on inputs that nobody has tried. What it raises is no
error of the check's, so that the check carries on without the result::

    with Guard("the first call") as ran:
        return subject.pull(*point)
    context.note(f"the first call raised {type(ran.error).__name__}")

A fault in the package's own code must not hide there. Where ``OWN_FAULTS_RAISE`` is set, as the
tests set it, a guard lets through what was raised in a file of the package and is of a kind that
says that the code there is wrong.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
OWN_FAULTS = (NameError, AttributeError, AssertionError, LookupError)
OWN_FAULTS_RAISE = False


class Swallowed(NamedTuple):
    """What a guard has caught: where the guard stands, what ran inside it, what was raised."""

    place: str
    ran: str
    raised: str


swallowed: Counter[Swallowed] = Counter()  # how often, in this process


class Guard:
    """A context that catches any ``Exception``; ``error`` is the one that was caught, or None.

    What interrupts a program, such as ``KeyboardInterrupt`` and the watchdog's ``TimeUp``, is no
    ``Exception`` and passes.

    Args:
        ran: what runs inside, in words.
    """

    def __init__(self, ran: str) -> None:
        self.ran = ran
        self.error: Exception | None = None

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:  # fmt: skip
        if not isinstance(error, Exception) or (OWN_FAULTS_RAISE and is_own_fault(error)):
            return False
        self.error = error
        caller = sys._getframe(1)
        place = f"{caller.f_globals['__name__']}:{caller.f_lineno}"
        swallowed[Swallowed(place, self.ran, type(error).__name__)] += 1
        return True


def is_own_fault(error: Exception) -> bool:
    """Whether an error was raised by a line of the package, and means that the line is wrong.

    A ``TypeError`` or ``ValueError`` is none: the package raises those itself where a person's
    function returns what it must not, and Python does where it takes other arguments.
    """
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return isinstance(error, OWN_FAULTS) and bool(frames) and frames[0].filename.startswith(PACKAGE)


def first_line(error: BaseException | None) -> str:
    """The first line of an error's message, "" where it has none."""
    return next(iter(str(error).strip().splitlines()), "")
