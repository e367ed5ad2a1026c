"""A guard stands around a person's code: what it raises is counted, and the check goes on.

A check runs code that may raise anything, on inputs that nobody has tried. What it raises is no
error of the check's, so that the check carries on without the result::

    with Guard("the first call") as ran:
        return subject.pull(*point)
    context.note(f"the first call raised {ran.raised}")

A fault in the package's own code must not hide there. Where ``OWN_FAULTS_RAISE`` is set, as the
tests set it, a guard lets through what was raised in a file of the package and is of a kind that
says that the code there is wrong.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from functional_bp.gradcheck.findings import Place

LIBRARIES = (
    "site-packages", "functional_bp/gradcheck", "functional_bp/graph", "<frozen",
    sysconfig.get_path("stdlib"),
)  # fmt: skip
PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
OWN_FAULTS = (NameError, AttributeError, AssertionError, LookupError)
OWN_FAULTS_RAISE = False


class Swallowed(NamedTuple):
    """An entry says what a guard has caught: where it stands, what ran in it, what was raised."""

    place: str
    ran: str
    raised: str


swallowed: Counter[Swallowed] = Counter()  # how often, in this process


class Guard:
    """A guard catches any ``Exception``; ``error`` is the one that it caught, or None.

    What interrupts a program, such as ``KeyboardInterrupt`` and the watchdog's ``TimeUp``, is no
    ``Exception`` and passes.

    Args:
        ran: what runs inside, in words.
        may_misfit: whether the package's own code may fail there for no fault of its own: on a
            person's code that it has edited, whose values have another shape by then, or on an
            object that is half made. Nothing is let through.
    """

    def __init__(self, ran: str, may_misfit: bool = False) -> None:
        self.ran, self.may_misfit = ran, may_misfit
        self.error: Exception | None = None

    @property
    def raised(self) -> str:
        """Return the name of the error's type."""
        return type(self.error).__name__

    @property
    def message(self) -> str:
        """Return the first line of what the error says, "" where it says nothing."""
        return next(iter(str(self.error).strip().splitlines()), "")

    @property
    def place(self) -> Place | None:
        """Return the line of a person's code that raised it, or that called what did."""
        return place_of(self.error) if self.error else None

    @property
    def ran_persons_code(self) -> bool:
        """Tell whether it was raised in a person's code, or in what that had called.

        Otherwise a library, or the package, raised it on what a person's code had returned.
        """
        frames = traceback.extract_tb(self.error.__traceback__) if self.error else ()
        return any(not is_library(frame.filename) for frame in frames)

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:  # fmt: skip
        lets_through = OWN_FAULTS_RAISE and not self.may_misfit
        if not isinstance(error, Exception) or (lets_through and is_own_fault(error)):
            return False
        self.error = error
        caller = sys._getframe(1)
        place = f"{caller.f_globals['__name__']}:{caller.f_lineno}"
        swallowed[Swallowed(place, self.ran, type(error).__name__)] += 1
        return True


def is_own_fault(error: Exception) -> bool:
    """Tell whether a line of the package raised an error which means that the line is wrong.

    A ``TypeError`` or ``ValueError`` is none: the package raises those itself where a person's
    function returns what it must not, and Python does where it takes other arguments.
    """
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return isinstance(error, OWN_FAULTS) and bool(frames) and frames[0].filename.startswith(PACKAGE)


def place_of(error: BaseException) -> Place | None:
    """Return the innermost line of a person's code in an error's traceback."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not is_library(frame.filename) and not frame.filename.startswith("<")
    ]
    if not frames:
        return None
    last = frames[-1]
    return Place(last.filename, last.lineno or 0, (last.line or "").strip())


def is_library(filename: str) -> bool:
    """Tell whether a file is none of the person's, but the package's or a library's."""
    return any(part in filename for part in LIBRARIES)
