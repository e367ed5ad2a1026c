"""The command line ``functional-bp`` runs one of its commands.

The exit status is 0 where all is well, 1 where a check failed, 2 where it was called wrongly.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int``. It is imported
when it is called, so that help costs nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata

# command: (module, what it does)
COMMANDS = {
    "check": (
        "functional_bp.cli.check",
        "check hand-derived gradients, and say what is wrong",
    ),
    "demo": ("functional_bp.cli.demo", "train a network and compare its gradients with JAX's"),
    "explain": (
        "functional_bp.cli.explain",
        "show a function's graph with its values, gradients and formulas",
    ),
    "footprint": (
        "functional_bp.cli.footprint",
        "tell what fills memory when a function is trained, and whether it fits",
    ),
    "plan": (
        "functional_bp.cli.plan",
        "find how a loss that does not fit one device is trained on several",
    ),
    "rules": ("functional_bp.cli.rules", "list the VJP rules, or show one in full"),
}

INTERRUPTED = 130  # as shells report a program that was stopped with Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the words call for.

    Args:
        argv: the words after the program's name; by default those that it was started with.

    Returns:
        The exit status: 0 where all is well, 1 where a check fails, 2 where it was called wrongly.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="functional-bp",
        description="Backpropagation that a person can read, check and scale.",
        epilog="Exit status: 0 well, 1 a check failed, 2 called wrongly.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (module_name, what) in COMMANDS.items():
        sub = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if words[:1] == [name]:
            module = importlib.import_module(module_name)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        status = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `functional-bp rules | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("functional-bp: stopped", file=sys.stderr)
        return INTERRUPTED
    return status


def _version() -> str:
    try:
        return f"functional-bp {metadata.version('functional-bp')}"
    except metadata.PackageNotFoundError:
        return "functional-bp, not installed"
