"""The commands share how a function is found, on what inputs it is taken, and how they refuse."""

from __future__ import annotations

import argparse
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functional_bp.gradcheck.targets import Target

CALLED_WRONGLY = 2  # the exit status
INPUTS = """\
On what inputs, the first of these that there is:
  --inputs FILE.npz, or FILE.py with a function example_inputs(); --shape, for every argument;
  those of @bp.checked; the function example_inputs() or example_inputs(NAME) in the module, which
  returns the arguments, or a dictionary of them by the functions' names; defaults, where every
  argument has one
"""


def add_inputs(parser: argparse.ArgumentParser, shapes: str) -> None:
    """Add the options ``--shape`` and ``--inputs`` to a command.

    Args:
        parser: of the command.
        shapes: what else may stand in place of ``f32[4,3]``.
    """
    about = f"draw this argument; also i32[5], bool[3], f32[4,3]:0..1, {shapes}"
    parser.add_argument(
        "--shape", action="append", default=[], metavar="x=f32[4,3]", dest="shapes", help=about
    )
    about = "take the arguments from a file: .npz by name, or .py"
    parser.add_argument("--inputs", metavar="FILE", help=about)


def refuse(command: str, reason: object) -> int:
    """Write to stderr why a command was called wrongly; return the exit status for it."""
    print(f"functional-bp {command}: {reason}", file=sys.stderr)
    return CALLED_WRONGLY


def function_at(text: str) -> Target:
    """Find the function that ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION`` stands for.

    Raises:
        TargetError: there is no such module or function; the message lists near names.
    """
    from functional_bp.gradcheck.targets import Target, TargetError, load, lookup, marked_in

    where, colon, name = text.rpartition(":")
    is_whole = not colon or name.endswith(".py") or os.sep in name  # the colon of a drive's letter
    module = load(text if is_whole else where)
    subject = None if is_whole else lookup(text)
    if not callable(subject):
        there = ", ".join(_functions_in(module)[:6])
        raise TargetError(
            f"{text} is no function",
            got="a module" if is_whole else type(subject).__name__,
            expected="MODULE:FUNCTION or FILE.py:FUNCTION",
            do=f"name one of its functions: {there}" if there else "",
        )
    marked = (mark.arguments for mark in marked_in(module) if mark.subject is subject)
    return Target(f"{module.__name__}:{name}", subject, module, next(marked, ()))


def optimizer_of(name: str) -> Any:
    """Make the optimizer of optax of that name, with a learning rate of 0.001.

    Raises:
        FootprintError: there is none of a learning rate alone.
    """
    import optax

    from functional_bp.memory.footprint import FootprintError

    made = getattr(optax, name, None)
    try:
        optimizer = made(1e-3) if callable(made) else None
    except TypeError:
        optimizer = None
    if not hasattr(optimizer, "init"):
        raise FootprintError(
            f"optax has no optimizer {name!r} of a learning rate alone",
            expected="adam, adamw, sgd, lion, …",
            do="count your own step: functional-bp footprint FILE.py:step",
        )
    return optimizer


def _functions_in(module: ModuleType) -> list[str]:
    """List the functions that a module itself defines, in their order."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not isinstance(value, type)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
