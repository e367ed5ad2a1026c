"""The commands share the options that say on what inputs, and the way in which they refuse."""

from __future__ import annotations

import argparse
import sys

CALLED_WRONGLY = 2  # the exit status
INPUTS = """\
On what inputs, the first of these that there is:
  --inputs FILE.npz, or FILE.py with a function example_inputs(); --shape, for every argument;
  those of @bp.checked; the function example_inputs() or example_inputs(NAME) in the module, which
  returns the arguments or a dictionary of them by name; defaults, where every argument has one
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
