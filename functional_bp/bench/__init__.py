"""Benchmarks that anyone can run: ``functional-bp bench engine``, ``check`` and ``train``."""

from __future__ import annotations

import argparse
import json
import sys

SUITES = {
    "engine": "bp.value_and_grad beside jax.value_and_grad",
    "check": "our check of gradients beside others, on known faults and on right gradients",
    "train": "training steps and fit beside plain JAX, Keras, Flax NNX and PyTorch",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The suites of ``functional-bp bench``, and the options of each."""
    from functional_bp.bench import check, train

    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE", title="suites")
    engine = suites.add_parser("engine", help=SUITES["engine"], description=SUITES["engine"])
    engine.add_argument("--models", nargs="*", metavar="NAME", help="only these models")
    engine.add_argument("--repeats", type=int, default=9, help="interleaved repeats (default 9)")
    engine.add_argument("--json", action="store_true", help="print JSON instead of a table")
    check.add_arguments(
        suites.add_parser("check", help=SUITES["check"], description=SUITES["check"])
    )
    train.add_arguments(
        suites.add_parser("train", help=SUITES["train"], description=SUITES["train"])
    )


def run(args: argparse.Namespace) -> int:
    """Run the suite; 0 on success, 1 if our check failed, 2 if an option is wrong."""
    if args.suite == "check":
        from functional_bp.bench import check

        return check.run(args)
    if args.suite == "train":
        from functional_bp.bench import train

        return train.run(args)
    return _run_engine(args)


def _run_engine(args: argparse.Namespace) -> int:
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
