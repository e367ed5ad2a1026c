"""The memory that gradients need: plain, under ``jax.checkpoint``, and under ``bp.recompute``.

Compiled temporaries and the operations of the gradient's graph do not vary from run to run. Each
figure is a ratio to plain ``jax.value_and_grad`` of the same loss.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

import functional_bp as bp
from benchmarks.losses import LOSSES, Made, Wrap
from functional_bp.memory.recompute import BudgetError

BUDGETS = (0.7, 0.5, 0.35, 0.25)
POLICIES: dict[str, Wrap] = {
    "checkpoint": jax.checkpoint,
    "checkpoint, dots saved": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable
    ),
}


class Row(NamedTuple):
    """One way to differentiate one loss: ratios to plain ``jax.value_and_grad``, and seconds."""

    loss: str
    way: str
    memory: float | None
    operations: float | None
    search_seconds: float = 0.0
    least: float | None = None  # of a budget that cannot be kept: the least that was found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks memory``."""
    parser.add_argument("--losses", nargs="*", metavar="NAME", help="only these losses")
    about = "shares of the plain temporaries (default 0.7 0.5 0.35 0.25)"
    parser.add_argument(
        "--budgets", nargs="*", type=float, default=BUDGETS, metavar="SHARE", help=about
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 on success, 1 if a budget was not kept, 2 if an option is wrong."""
    chosen = args.losses or list(LOSSES)
    unknown = sorted(set(chosen) - set(LOSSES))
    if unknown or not all(0 < share < 1 for share in args.budgets):
        wrong = f"no loss {unknown[0]!r}" if unknown else "a budget is a share between 0 and 1"
        print(f"benchmarks memory: {wrong}; there are {', '.join(LOSSES)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in chosen:
        rows += measure(name, args.budgets)
        if not args.json:
            print("\n".join(map(line, rows[-len(args.budgets) - len(POLICIES) - 1 :])), flush=True)
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    kept = (row.memory is None or row.memory <= float(row.way.split()[-1]) + 1e-6
            for row in rows if row.way.startswith("recompute"))  # fmt: skip
    return 0 if all(kept) else 1


def measure(name: str, budgets: Sequence[float]) -> list[Row]:
    """One row for each way to differentiate the loss of that name."""
    loss, args = LOSSES[name](lambda block: block)
    plain = _figures(jax.value_and_grad(loss), args)

    def row(way: str, made: Made, transform: Callable[..., Any], seconds: float = 0.0) -> Row:
        memory, operations = _figures(transform(made[0]), made[1])
        return Row(name, way, memory / plain[0], operations / plain[1], seconds)

    ours = _temporaries(bp.value_and_grad(loss), args)
    rows = [row("bp.value_and_grad", (loss, args), bp.value_and_grad)]
    rows += [row(way, LOSSES[name](wrap), jax.value_and_grad) for way, wrap in POLICIES.items()]
    for share in budgets:
        lean = bp.recompute(loss, min(share * plain[0] / ours, 0.999))  # ours is often less
        started = time.perf_counter()
        try:
            lean.choice(*args)
        except BudgetError as error:
            rows.append(Row(name, f"recompute {share}", None, None, least=error.least / plain[0]))
        else:
            seconds = time.perf_counter() - started
            rows.append(row(f"recompute {share}", (lean, args), bp.value_and_grad, seconds))
    return rows


def _figures(transformed: Callable[..., Any], args: tuple[Any, ...]) -> tuple[int, int]:
    """Compiled temporaries in bytes, and the operations of the graph."""
    return _temporaries(transformed, args), bp.trace(transformed, *args).flops


def _temporaries(transformed: Callable[..., Any], args: tuple[Any, ...]) -> int:
    compiled: Any = jax.jit(transformed).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def line(row: Row) -> str:
    """One line of the table."""
    if row.memory is None:
        return f"{row.loss:18} {row.way:24}  below the floor, {row.least:.2f}"
    search = f"  found in {row.search_seconds:.0f} s" if row.search_seconds else ""
    figures = f"memory {row.memory:.2f}  operations {row.operations:.2f}"
    return f"{row.loss:18} {row.way:24}  {figures}{search}"
