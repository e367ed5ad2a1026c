"""Losses planned over simulated devices: bytes, communication, and the choice of the planner.

Every figure is a compiled one: a step with Adam, its state donated. For budgets between what the
leanest layout and what one device needs, the planner's choice is compared with that of compiling
every layout; the best is the one that takes least time on the planner's own roofline, with compiled
communication. Microbatches and recomputation are left out of that comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from benchmarks.divisible_losses import LOSSES
from functional_bp.cli.plan import simulate
from functional_bp.shard.layout_search import (
    MOST_COMPILED,
    CompiledStep,
    LayoutSearch,
    NothingFitsError,
)

DEVICES = (2, 4, 8)
BUDGETS = 5  # for each loss and number of devices
ALIKE = 1.05  # in time: a choice within it is as good


class Choice(NamedTuple):
    """The planner's choice for a budget, beside that of compiling everything.

    Attributes:
        budget: in bytes.
        chosen: the layout, "" where none was found.
        peak_bytes: of it, compiled.
        best: the layout that compiling everything finds.
        is_best: the chosen one takes no more than ``ALIKE`` times the best one's time.
        compilations: for this budget, had none been compiled before.
    """

    budget: int
    chosen: str
    peak_bytes: int
    best: str
    is_best: bool
    compilations: int


class Row(NamedTuple):
    """A loss on so many devices.

    Attributes:
        alone: bytes that one device needs.
        least: bytes of the leanest layout, per device.
        single: bytes of the leanest layout that divides one dimension and stores nothing in parts.
        layout: the leanest.
        sent: bytes that a device sends there, and the least that its sums take.
        compiled: how many layouts were.
        choices: of the planner.
    """

    loss: str
    devices: int
    alone: int
    least: int
    single: int
    layout: str
    sent: tuple[int, int]
    compiled: int
    choices: tuple[Choice, ...]


class _Recorded(LayoutSearch):
    """A search that compiles nothing twice, even where it has forgotten that it did."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._programs: dict[Any, CompiledStep] = {}
        super().__init__(*args, **kwargs)

    def _compiled(self, made: Any, division: Any, batch: Any, memory: Any) -> CompiledStep:
        if division not in self._programs:
            self._programs[division] = super()._compiled(made, division, batch, memory)
        return self._programs[division]

    def forgetful(self) -> LayoutSearch:
        """The same search, before it has compiled or learnt anything."""
        fresh = copy(self)
        fresh._done, fresh._sent, fresh._found = {}, {}, {}
        return fresh


def measure(name: str, devices: int, budgets: int = BUDGETS) -> Row:
    """Compile every layout of a loss over so many devices, and plan for some budgets."""
    loss, params, batch = LOSSES[name]()
    everything = _Recorded(loss, params, batch, optax.adam(1e-3), jax.devices()[:devices],
                           microbatches=False, recompute=False)  # fmt: skip
    found = []
    for trial in everything.trials:
        if trial.layout is not None:
            done, _ = everything.measured(trial, 0)
            assert isinstance(done, CompiledStep)
            found.append((trial, done))
    trial, lean = min(found, key=lambda x: x[1].peak_bytes)
    single = [done.peak_bytes for t, done in found if t.division.is_single]
    alone = everything.alone.peak_bytes
    limits = [round(lean.peak_bytes * (alone / lean.peak_bytes) ** (k / budgets) * 1.01)
              for k in range(budgets)]  # fmt: skip
    return Row(
        name, devices, alone, lean.peak_bytes, min(single, default=alone), str(trial.division),
        (lean.communication.bytes, round(trial.sent_bytes)), len(found),
        tuple(_choice(everything, found, limit) for limit in limits),
    )  # fmt: skip


def _choice(search: _Recorded, found: Sequence[Any], budget: int) -> Choice:
    fitting = [(search.rank_of(t, done), t) for t, done in found if done.peak_bytes <= budget]
    (idle, seconds), best = min(fitting, key=lambda x: x[0])
    try:
        result = search.forgetful().find(budget)
    except NothingFitsError:
        return Choice(budget, "", 0, str(best.division), False, MOST_COMPILED)
    own = search.rank_of(result.chosen.trial, result.compiled)
    is_best = own <= (idle, ALIKE * seconds)
    return Choice(budget, str(result.division), result.peak_bytes, str(best.division), is_best,
                  result.compilations)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the suite."""
    about = f"one of {', '.join(LOSSES)}; may be repeated; by default all"
    parser.add_argument("--loss", action="append", choices=list(LOSSES), help=about, dest="losses")
    parser.add_argument("--devices", action="append", type=int, help="2, 4 and 8 by default")
    parser.add_argument("--budgets", type=int, default=BUDGETS, help="for each of them")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")


def run(args: argparse.Namespace) -> int:
    """Print a line for each loss and number of devices; 1 if a budget was not kept."""
    simulate(max(args.devices or DEVICES))
    rows = []
    print(HEAD)
    for name in args.losses or LOSSES:
        for devices in args.devices or DEVICES:
            rows.append(measure(name, devices, args.budgets))
            print(_line(rows[-1]), flush=True)
    choices = [choice for row in rows for choice in row.choices]
    print("\n".join(_summary(choices)))
    if args.json:
        told = [row._asdict() | {"choices": [c._asdict() for c in row.choices]} for row in rows]
        Path(args.json).write_text(json.dumps(told, indent=1), encoding="utf-8")
    broken = [choice for choice in choices if choice.peak_bytes > choice.budget]
    print(f"{len(broken)} budgets not kept", file=sys.stderr if broken else sys.stdout)
    return int(bool(broken))


HEAD = (
    f"{'loss':<17}{'n':>2}{'one, MB':>9}{'each, MB':>9}{'÷':>6}{'÷ single':>9}{'sent, MB':>9}"
    f"{'least':>7}{'right':>7}{'compiled':>9}  leanest layout"
)


def _line(row: Row) -> str:
    right = sum(choice.is_best for choice in row.choices)
    mean = sum(choice.compilations for choice in row.choices) / len(row.choices)
    return (
        f"{row.loss:<17}{row.devices:>2}{row.alone / 1e6:>9.2f}{row.least / 1e6:>9.2f}"
        f"{row.alone / row.least:>6.2f}{row.alone / row.single:>9.2f}{row.sent[0] / 1e6:>9.2f}"
        f"{row.sent[1] / 1e6:>7.2f}{f'{right}/{len(row.choices)}':>7}"
        f"{f'{mean:.1f}/{row.compiled}':>9}  {row.layout}"
    )


def _summary(choices: Sequence[Choice]) -> Iterator[str]:
    right = sum(choice.is_best for choice in choices)
    mean = sum(choice.compilations for choice in choices) / len(choices)
    yield (f"{len(choices)} budgets: the choice is as good as that of compiling everything in "
           f"{100 * right / len(choices):.0f} %, with {mean:.1f} compilations")  # fmt: skip
