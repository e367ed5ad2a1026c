"""Trials as scores: per checker, per category, and the names of what was missed and accused."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.corpus import Case
from benchmarks.trials import OURS, Trial

GROUPS = ("given inputs", "elsewhere", "second order", "calls", "form", "rounding")
DIAGNOSED = ("given inputs", "elsewhere")  # the first-order faults, which are to be repaired
SHOWN_NAMES = 12  # of the misses of a checker that is not ours


def score(chosen: Sequence[Case], trials: Sequence[Trial]) -> dict[str, Any]:
    """One checker's figures.

    A fault counts as found if the checker objects to it and does not object to the right version
    of the same operation on the same inputs, where that is among the trials.
    """
    by_name = {case.name: case for case in chosen}
    accused = {t.case for t in trials if by_name[t.case].fault is None and t.objects}
    blamed = {by_name[name].operation.name for name in accused if not by_name[name].inputs}
    faults = [(by_name[t.case], t) for t in trials if by_name[t.case].fault is not None]
    found = {c.name for c, t in faults if t.objects and c.operation.name not in blamed}
    rights = [(by_name[t.case], t) for t in trials if by_name[t.case].fault is None]
    first_order = [t for c, t in faults if _shows(c) in DIAGNOSED]
    seconds = [trial.seconds for trial in trials]
    return {
        "faults": len(faults),
        "found": len(found),
        "right": len(rights),
        "accused": len(accused),
        "hard right": sum(case.hard for case, _ in rights),
        "hard accused": sum(case.hard for case, t in rights if t.objects),
        "unresolved faults": sum(t.unresolved for _, t in faults),
        "unresolved right": sum(t.unresolved for _, t in rights),
        "seconds": sum(seconds),
        "median seconds": statistics.median(seconds) if seconds else 0.0,
        "kind named": sum(t.kind_named for _, t in faults),
        "first order": len(first_order),
        "line named": sum(t.line_named for t in first_order),
        "repaired": sum(t.repaired for t in first_order),
        "by group": _shares([(_shows(c), c.name in found) for c, _ in faults]),
        "by kind": _shares([(_kind(c), c.name in found) for c, _ in faults]),
        "named by kind": _shares([(_kind(c), t.kind_named) for c, t in faults]),
        "missed": [c.name for c, t in faults if c.name not in found and not t.unresolved],
        "unresolved": [t.case for t in trials if t.unresolved],
        "accused names": sorted(accused),
        "misnamed": [f"{t.case} → {', '.join(t.kinds) or '–'}" for _, t in faults
                     if t.objects and not t.kind_named],
    }  # fmt: skip


def as_data(
    chosen: Sequence[Case], trials: Sequence[Trial], absent: Sequence[str]
) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "jax": jax.__version__,
        "scores": {name: score(chosen, own) for name, own in _by_checker(trials).items()},
        "not installed": list(absent),
        "trials": [trial.as_data() for trial in trials],
    }


def print_tables(chosen: Sequence[Case], trials: Sequence[Trial], absent: Sequence[str]) -> None:
    """A table of the checkers, one of the categories, and what was missed and accused."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, 110)
    scores = {name: score(chosen, own) for name, own in _by_checker(trials).items()}
    kinds = Counter(_kind(case) for case in chosen if case.fault is not None)
    rights = sum(case.fault is None for case in chosen)
    operations = len({case.operation.name for case in chosen})
    console.print(
        f"{sum(kinds.values())} faults in {operations} operations, {rights} right gradients, "
        f"{sum(case.hard for case in chosen)} of them hard; jax {jax.__version__} on "
        f"{jax.devices()[0].device_kind}\n"
    )
    console.print(_checker_table(scores, absent))
    console.print(_group_table("faults that show", GROUPS, scores, "by group"))
    console.print(_group_table("best name of the fault", sorted(kinds), scores, "by kind"))
    for name, own in scores.items():
        _print_names(console, name, own)


def _checker_table(scores: dict[str, dict[str, Any]], absent: Sequence[str]) -> Any:
    headings = ["checker", "found", "accused", "of hard", "unresolved", "kind", "line", "repair",
                "seconds", "median"]  # fmt: skip
    table = _table(headings)
    for name, own in scores.items():
        ours = name in OURS
        table.add_row(
            name,
            f"{own['found']}/{own['faults']}",
            f"{own['accused']}/{own['right']}",
            f"{own['hard accused']}/{own['hard right']}",
            f"{own['unresolved faults']} + {own['unresolved right']}" if ours else "",
            _percent(own["kind named"], own["faults"]) if ours else "",
            _percent(own["line named"], own["first order"]) if ours else "",
            _percent(own["repaired"], own["first order"]) if ours else "",
            f"{own['seconds']:.0f}",
            f"{own['median seconds']:.2f}",
        )
    for name in absent:
        table.add_row(name, "not installed")
    return table


def _group_table(
    title: str, groups: Sequence[str], scores: dict[str, dict[str, Any]], key: str
) -> Any:
    names = list(scores)
    table = _table([title, *names])
    for group in groups:
        shares = [scores[name][key].get(group) for name in names]
        if any(shares):
            table.add_row(group, *(f"{s[0]}/{s[1]}" if s else "" for s in shares))
    return table


def _print_names(console: Any, checker: str, own: dict[str, Any]) -> None:
    lists = {
        "missed": "missed",
        "accused": "accused names",
        "could not resolve": "unresolved",
        "named otherwise": "misnamed",
    }
    for what, key in lists.items():
        if key == "misnamed" and checker not in OURS:
            continue
        names = own[key]
        shown = names if checker in OURS else names[:SHOWN_NAMES]
        if names:
            rest = len(names) - len(shown)
            more = [f"… {rest} more, with --json"] if rest else []
            console.print(f"\n{checker} {what}:", markup=False)
            for line in [*shown, *more]:
                console.print(f"  {line}", markup=False)


def _table(headings: Sequence[str]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    return table


def _by_checker(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    grouped: dict[str, list[Trial]] = {}
    for trial in trials:
        grouped.setdefault(trial.checker, []).append(trial)
    return grouped


def _shares(pairs: Sequence[tuple[str, bool]]) -> dict[str, tuple[int, int]]:
    """By group: how many hold, of how many."""
    total = Counter(group for group, _ in pairs)
    hold = Counter(group for group, holds in pairs if holds)
    return {group: (hold[group], count) for group, count in total.items()}


def _shows(case: Case) -> str:
    assert case.fault is not None
    return case.fault.shows


def _kind(case: Case) -> str:
    assert case.fault is not None
    return case.fault.kind


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"
