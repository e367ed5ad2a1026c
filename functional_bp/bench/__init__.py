"""Benchmarks that anyone can run: ``functional-bp bench engine``."""

from __future__ import annotations

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``functional-bp bench``."""
    parser.add_argument("suite", choices=["engine"], help="what to measure")
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these models")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repeats (default 9)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Run the suite; 0 on success, 2 if an option is wrong."""
    if args.repeats < 1:
        print("functional-bp bench: --repeats must be at least 1", file=sys.stderr)
        return 2
    from functional_bp.bench.engine import measure, table
    from functional_bp.bench.models import models

    unknown = sorted(set(args.models or ()) - set(models))
    if unknown:
        print(
            f"functional-bp bench: no model {unknown[0]!r}; there are {', '.join(models)}",
            file=sys.stderr,
        )
        return 2
    rows = measure({name: models[name] for name in args.models or models}, args.repeats)
    print(json.dumps(rows, indent=1) if args.json else table(rows))
    return 0
