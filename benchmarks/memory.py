"""The memory that gradients need: plain, under ``jax.checkpoint``, and under ``bp.recompute``.

Compiled temporaries and compiled operations do not vary from run to run; both, and the seconds of a
run, are ratios to plain ``jax.value_and_grad`` of the same loss. Seconds are interleaved: every way
runs once in each round, and its ratio is the median over the rounds. ``jax.checkpoint`` stands
around the whole loss, around each block, or around segments of about √n blocks or steps, with each
of JAX's policies. Where it is ahead of every budget that was asked for, ``bp.recompute`` is asked
for just the memory that it needed.
"""

from __future__ import annotations

import argparse
import enum
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import functional_bp as bp
from benchmarks import held_out, memory_curves, reported, timing
from benchmarks.losses import LOSSES, Made, Placement, Wrap
from benchmarks.memory_curves import Curve, Mark
from functional_bp.memory.budgets import BudgetError
from functional_bp.memory.compiled_flops import compiled_flops

BUDGETS = (0.7, 0.5, 0.35, 0.25)
POLICIES: dict[str, Any] = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots without batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "everything": jax.checkpoint_policies.everything_saveable,
}
PLACEMENTS = ("whole", "blocks", "segments")
SAME = 0.005  # of a ratio: closer to each other they are not told apart
EXPERTS: dict[str, Callable[[], Made]] = {**reported.EXPERTS, **held_out.EXPERTS}


def _reported(name: str, make: Callable[[Wrap], Made]) -> Callable[[Placement], Made]:
    """By segments it is what an expert wrote, where there is such a version."""
    expert = EXPERTS.get(name)
    return lambda place: expert() if expert and place.by_segments else make(place.wrap)


REPORTED: dict[str, Callable[[Placement], Made]] = {
    name: _reported(name, make) for name, make in {**reported.LOSSES, **held_out.LOSSES}.items()
}


def _made(name: str, place: Placement) -> Made:
    """A loss of either list, and the shapes of its arguments."""
    return (REPORTED.get(name) or LOSSES[name])(place)


class Side(enum.StrEnum):
    """Who differentiates."""

    JAX = "jax.value_and_grad"
    BP = "bp.value_and_grad"
    CHECKPOINT = "jax.checkpoint"
    RECOMPUTE = "bp.recompute"

    @property
    def is_ours(self) -> bool:
        """Whether it is this project."""
        return self in (Side.BP, Side.RECOMPUTE)


class Way(NamedTuple):
    """One way to differentiate: where ``jax.checkpoint`` stands and what it saves, or a budget."""

    side: Side
    placement: str = ""
    policy: str = ""
    budget: float | None = None

    def __str__(self) -> str:
        if self.side is Side.CHECKPOINT:
            return f"{self.side} {self.placement}, {self.policy} saved"
        return self.side if self.budget is None else f"{self.side} {self.budget:.3g}"


class Row(NamedTuple):
    """One way to differentiate one loss; ratios are to plain ``jax.value_and_grad``.

    Attributes:
        loss: its name.
        way: how it was differentiated.
        memory, flops, run: ratios, of temporaries, operations and seconds of a run; None where the
            budget cannot be kept, the last also where nothing ran.
        compile_seconds: of the one program.
        search_seconds: until ``bp.recompute`` had chosen, compilations included.
        least: where the budget cannot be kept, the least memory that was found.
    """

    loss: str
    way: Way
    memory: float | None = None
    flops: float | None = None
    run: float | None = None
    compile_seconds: float = 0.0
    search_seconds: float = 0.0
    least: float | None = None

    def is_within(self, other: Row) -> bool:
        """Say whether it needs neither more memory nor more operations than another."""
        if None in (self.memory, self.flops, other.memory, other.flops):
            return False
        pairs: Any = ((self.memory, other.memory), (self.flops, other.flops))
        return all(mine <= theirs * (1 + SAME) for mine, theirs in pairs)


class _Program:
    """A transform of a loss, lowered; compiled when it is asked for."""

    def __init__(self, transformed: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._lowered = jax.jit(transformed).lower(*args)
        self.text = self._lowered.as_text()
        self.compile_seconds = 0.0

    @cached_property
    def compiled(self) -> Any:
        started = time.perf_counter()
        compiled = self._lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        return compiled

    @cached_property
    def figures(self) -> tuple[int, int]:
        """Temporaries in bytes, and operations."""
        temporaries = self.compiled.memory_analysis().temp_size_in_bytes
        return temporaries, compiled_flops(self.compiled)


def measure(
    name: str,
    budgets: Sequence[float] = BUDGETS,
    *,
    placements: Iterable[str] = PLACEMENTS,
    policies: Iterable[str] = tuple(POLICIES),
    repeats: int = 0,
) -> list[Row]:
    """Differentiate one loss in every way.

    Args:
        name: of the loss.
        budgets: shares of the plain temporaries.
        placements: some of ``PLACEMENTS``.
        policies: some of ``POLICIES``.
        repeats: rounds in which every way runs once; with 0 nothing runs.

    Returns:
        A row for each, plain ``jax.value_and_grad`` first. What lowers to the same program as one
        before it has none.
    """
    loss, args = _made(name, Placement())
    programs = {Way(Side.JAX): _Program(jax.value_and_grad(loss), args)}
    plain = programs[Way(Side.JAX)].figures
    programs[Way(Side.BP)] = _Program(bp.value_and_grad(loss), args)
    seen: set[str] = set()
    for way, made in _checkpointed(name, placements, policies):
        program = _Program(jax.value_and_grad(made[0]), made[1])
        if program.text not in seen:
            programs[way] = program
        seen.add(program.text)
    rows = [_row(name, way, program, plain) for way, program in programs.items()]
    ours = programs[Way(Side.BP)].figures[0]

    def within(share: float) -> Row:
        """Ask for a share of the plain temporaries; ours are often fewer from the start."""
        way = Way(Side.RECOMPUTE, budget=share)
        if ours <= share * plain[0]:
            return _row(name, way, programs[Way(Side.BP)], plain)
        lean = bp.recompute(loss, share * plain[0] / ours)
        started = time.perf_counter()
        try:
            lean.choice(*args)
        except BudgetError as error:
            return Row(name, way, least=error.least / plain[0])
        seconds = time.perf_counter() - started
        programs[way] = _Program(bp.value_and_grad(lean), args)
        return _row(name, way, programs[way], plain)._replace(search_seconds=seconds)

    rows += [within(share) for share in budgets]
    rows += [within(row.memory) for row in ahead(rows) if row.memory and row.memory < 1]
    run = _run_ratios(programs, args, repeats) if repeats else {}
    return [row._replace(run=run.get(row.way)) for row in rows]


def _checkpointed(
    name: str, placements: Iterable[str], policies: Iterable[str]
) -> Iterator[tuple[Way, Made]]:
    for placement in placements:
        for policy in policies:
            if policy == "everything" and placement != "whole":
                continue  # nothing runs again, wherever it stands
            wrap = partial(jax.checkpoint, policy=POLICIES[policy])
            if placement == "whole":
                loss, args = _made(name, Placement())
                made = wrap(loss), args
            else:
                made = _made(name, Placement(wrap, placement == "segments"))
            yield Way(Side.CHECKPOINT, placement, policy), made


def _row(name: str, way: Way, program: _Program, plain: tuple[int, int]) -> Row:
    memory, flops = (figure / base for figure, base in zip(program.figures, plain))
    return Row(name, way, memory, flops, compile_seconds=program.compile_seconds)


def _run_ratios(
    programs: dict[Way, _Program], args: tuple[Any, ...], repeats: int
) -> dict[Way, float]:
    """Run all in turns; the ratio of each to the first, plain one."""
    values = _values(args)
    runs = {way: timing.sampler(program.compiled, *values) for way, program in programs.items()}
    samples = timing.interleaved(runs, repeats)
    plain = samples[Way(Side.JAX)]
    return {way: timing.median_ratio(seconds, plain) for way, seconds in samples.items()}


def _values(args: Any) -> Any:
    """Arrays for shapes: small numbers, integers below what any table of the losses holds."""
    rng = np.random.default_rng(0)

    def value(shape: Any) -> Any:
        if np.issubdtype(shape.dtype, np.integer):
            return jax.device_put(rng.integers(0, 512, shape.shape).astype(shape.dtype))
        return jax.device_put((0.1 * rng.normal(size=shape.shape)).astype(shape.dtype))

    return jax.tree.map(value, args)


def best(rows: Iterable[Row]) -> list[Row]:
    """The rows of ``jax.checkpoint`` that none other of the same loss betters."""
    found: list[Row] = []
    theirs = (row for row in rows if row.way.side is Side.CHECKPOINT)
    for row in sorted(theirs, key=lambda row: (row.memory or 0, row.flops or 0)):
        if not any(other.loss == row.loss and other.is_within(row) for other in found):
            found.append(row)
    return found


def ahead(rows: Sequence[Row]) -> list[Row]:
    """Where ``jax.checkpoint`` is ahead: none of ours needs as little memory and operations."""
    ours = [row for row in rows if row.way.side.is_ours]
    met = lambda row: any(other.loss == row.loss and other.is_within(row) for other in ours)
    return [row for row in best(rows) if not met(row)]


def line(row: Row) -> str:
    """One line of the table."""
    head = f"{row.loss:19} {row.way!s:47}"
    if row.memory is None:
        return f"{head}  below the floor, {row.least:.2f}"
    run = "" if row.run is None else f"  run {row.run:4.2f}"
    search = f"  found in {row.search_seconds:.0f} s" if row.search_seconds else ""
    figures = f"memory {row.memory:.2f}  flops {row.flops:.2f}{run}"
    return f"{head}  {figures}  compile {row.compile_seconds:4.1f} s{search}"


def markdown(rows: Sequence[Row], budgets: Sequence[float] = BUDGETS) -> str:
    """A line for each loss: memory · operations; in bold what none of ours meets."""
    columns = [Way(Side.BP), *(Way(Side.RECOMPUTE, budget=share) for share in budgets)]
    heads = ["loss", f"`{Side.BP}`", *(f"{100 * share:g} %" for share in budgets)]
    lines = [[*heads, f"`{Side.CHECKPOINT}`"], ["---"] * (len(heads) + 1)]
    better = ahead(rows)
    for loss in dict.fromkeys(row.loss for row in rows):
        of_way = {row.way: row for row in rows if row.loss == loss}
        ours = [_cell(of_way[way]) if way in of_way else "" for way in columns]
        theirs = [
            f"{_bold(_cell(row), row in better)} {row.way.placement}, {row.way.policy}"
            for row in reversed(best(of_way.values())) if (row.memory or 0) < 1 - SAME
        ]  # fmt: skip
        lines.append([loss, *ours, "<br>".join(theirs)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(row: Row) -> str:
    return f"({row.least:.2f})" if row.memory is None else f"{row.memory:.2f} · {row.flops:.2f}"


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks memory``."""
    parser.add_argument("--losses", nargs="*", metavar="NAME", help="only these losses")
    about = "losses that people reported; segments are what an expert wrote"
    parser.add_argument("--reported", action="store_true", help=about)
    about = "shares of the plain temporaries (default 0.7 0.5 0.35 0.25)"
    parser.add_argument(
        "--budgets", nargs="*", type=float, default=BUDGETS, metavar="SHARE", help=about
    )
    rounds = "interleaved rounds for seconds (default 5; 0: nothing runs)"
    parser.add_argument("--repeats", type=int, default=5, help=rounds)
    earlier = "tell rows of earlier runs, printed with --json, instead of measuring"
    parser.add_argument("--rows", nargs="*", type=Path, metavar="JSON", help=earlier)
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw memory against operations")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of lines")
    form.add_argument("--markdown", action="store_true", help="print a table of ratios instead")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 on success, 1 if a budget was not kept, 2 if an option is wrong."""
    chosen = args.losses or list(REPORTED if args.reported else LOSSES)
    known = [*LOSSES, *REPORTED]
    unknown = sorted(set(chosen) - set(known))
    wrong = "--repeats must be at least 0" if args.repeats < 0 else ""
    if not all(0 < share < 1 for share in args.budgets):
        wrong = "a budget is a share between 0 and 1"
    wrong = f"no loss {unknown[0]!r}; there are {', '.join(known)}" if unknown else wrong
    if wrong:
        print(f"benchmarks memory: {wrong}", file=sys.stderr)
        return 2
    measured = (measure(name, args.budgets, repeats=args.repeats) for name in chosen)
    rows: list[Row] = []
    for found in map(_read, args.rows) if args.rows else measured:
        rows += found
        if not (args.json or args.markdown):
            print("\n".join(map(line, found)), flush=True)
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    elif args.markdown:
        print(markdown(rows, args.budgets))
    elif better := ahead(rows):
        print("\nahead of bp.recompute", *map(line, better), sep="\n")
    if args.plot:
        args.plot.write_text(memory_curves.svg(curves(rows)))
    return 0 if all(map(_is_kept, rows)) else 1


def _read(file: Path) -> list[Row]:
    rows = (Row(**row) for row in json.loads(file.read_text()))
    return [row._replace(way=Way(Side(row.way[0]), *row.way[1:])) for row in rows]


def _is_kept(row: Row) -> bool:
    budget, memory = row.way.budget, row.memory
    return budget is None or memory is None or memory <= budget + 1e-6


def curves(rows: Iterable[Row]) -> dict[str, Curve]:
    """What is drawn of each loss: ours as a line, ``jax.checkpoint`` as points."""
    found: dict[str, Curve] = {}
    for row in rows:
        if row.memory is None or row.flops is None:
            continue
        curve = found.setdefault(row.loss, Curve([], []))
        if row.way.side.is_ours:
            curve.ours.append((row.memory, row.flops))
        elif row.way.side is Side.CHECKPOINT:
            way = row.way
            curve.theirs.append(Mark(row.memory, row.flops, way.placement, way.policy))
    return found
