"""The command line of the benchmarks: ``python -m benchmarks SUITE``, with options of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import check, engine, memory, shard, train

SUITES = {
    "engine": (engine, "bp.value_and_grad beside jax.value_and_grad"),
    "check": (check, "our check of gradients beside others, on known faults and right gradients"),
    "memory": (memory, "what gradients need: plain, under jax.checkpoint, and within a budget"),
    "shard": (shard, "steps divided over devices: bytes, communication, the planner's choice"),
    "train": (train, "training steps and fit beside plain JAX, Keras, Flax NNX and PyTorch"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite; 0 on success, 1 if our check failed, 2 if an option is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE", title="suites")
    for name, (suite, what) in SUITES.items():
        suite.add_arguments(suites.add_parser(name, help=what, description=what))
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return SUITES[args.suite][0].run(args)


if __name__ == "__main__":
    sys.exit(main())
