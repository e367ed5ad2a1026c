"""One checker on one case: what it said, how long it took, and how well it named the fault."""

from __future__ import annotations

import gc
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax

from benchmarks.corpus import Case, Loaded, cases, load
from benchmarks.rivals import rivals

DEVICES = 2
OURS = ("ours", "ours without reference")


@dataclass(frozen=True)
class Trial:
    """What one checker made of one case.

    Attributes:
        checker: its name.
        case: the case's name.
        objects: whether it takes the gradient to be wrong.
        unresolved: whether it says that it cannot tell.
        seconds: how long it took.
        kinds: the kinds that it named, the headline first; ours alone.
        kind_named: whether one of them names the fault rightly.
        line_named: whether it named a line that was edited.
        repaired: whether it gave a verified repair.
        message: the headline, or the exception.
    """

    checker: str
    case: str
    objects: bool
    unresolved: bool = False
    seconds: float = 0.0
    kinds: tuple[str, ...] = ()
    kind_named: bool = False
    line_named: bool = False
    repaired: bool = False
    message: str = ""

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def checkers() -> dict[str, bool]:
    """The names of all checkers, and whether each is installed."""
    others = {name: rival is not None for name, rival in rivals().items()}
    return dict.fromkeys(OURS, True) | others


def simulate_devices() -> None:
    """Two devices where there is only one processor's: some faults show on several alone."""
    if "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with suppress(RuntimeError):  # JAX has started already
        jax.config.update("jax_num_cpu_devices", DEVICES)


def run_trials(
    chosen: Sequence[Case], names: Sequence[str], jobs: int = 1, budget: float = 60.0
) -> Iterator[Trial]:
    """Run every named checker on every case, in ``jobs`` processes; in the order of the cases."""
    simulate_devices()
    work = [(case.name, tuple(names), budget) for case in chosen]
    if jobs == 1:
        for item in work:
            yield from _trials_of(item)
        return
    # A process holds on to what it compiled; a new one now and then gives that memory back.
    with get_context("spawn").Pool(jobs, simulate_devices, maxtasksperchild=40) as pool:
        for trials in pool.imap(_trials_of, work):
            yield from trials


def _trials_of(work: tuple[str, tuple[str, ...], float]) -> list[Trial]:
    """All checkers on one case, each with the operation imported anew."""
    name, names, budget = work
    case = next(case for case in cases() if case.name == name)
    trials = []
    for checker in names:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = load(case, Path(folder))
            started = time.perf_counter()
            trial = _trial(checker, case, loaded, budget)
            seconds = time.perf_counter() - started
        trials.append(Trial(**{**asdict(trial), "seconds": seconds}))
    jax.clear_caches()
    gc.collect()
    return trials


def _trial(checker: str, case: Case, loaded: Loaded, budget: float) -> Trial:
    if checker in OURS:
        return _ours(checker, case, loaded, budget)
    rival: Callable[..., bool] | None = rivals()[checker]
    assert rival is not None
    try:
        objects, message = rival(loaded.function, case.arguments(), loaded.reference), ""
    except Exception as error:  # a crash counts as an objection
        objects, message = True, _headline(error)
    return Trial(checker, case.name, objects, message=message)


def _ours(checker: str, case: Case, loaded: Loaded, budget: float) -> Trial:
    from functional_bp.gradcheck.check import check

    options = dict(case.operation.options)
    if checker != OURS[0]:
        options["reference"] = False
    elif "expect" not in options:
        options["reference"] = loaded.reference
    try:
        report = check(loaded.function, *case.arguments(), seconds=budget, **options)
    except Exception as error:
        return Trial(checker, case.name, True, message=_headline(error))
    findings = report.findings
    fault = case.fault
    places = [f.where for f in findings] + [f.repair.place for f in findings if f.repair]
    return Trial(
        checker,
        case.name,
        objects=report.verdict == "wrong",
        unresolved=report.verdict == "inconclusive",
        kinds=tuple(dict.fromkeys(finding.kind for finding in findings)),
        kind_named=fault is not None
        and any(kind in fault.kinds for f in findings for kind in (f.kind, *f.also)),
        line_named=any(
            place is not None and Path(place.file) == loaded.file and place.line in loaded.lines
            for place in places
        ),
        repaired=any(finding.repair is not None for finding in findings),
        message=findings[0].message if findings else "; ".join(report.reasons),
    )


def _headline(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:200]
