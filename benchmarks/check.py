"""``python -m benchmarks check``: our check beside the others, on faults and on right gradients."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks.corpus import Case, cases
from benchmarks.scores import as_data, print_tables
from benchmarks.trials import OURS, Trial, checkers, run_trials, simulate_devices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks check``."""
    parser.add_argument(
        "--checkers",
        metavar="NAME,…",
        help=f"only these, or a part of their names: {'; '.join(checkers())}",
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME",
        help="only the cases whose name contains this, as in softmax or softmax:axis; repeatable",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="every k-th case, so that N remain")
    parser.add_argument(
        "--without-reference", action="store_true", help="ours without a reference alone"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="budget of our check for a case (default 60)"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and run nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Run the chosen checkers on the chosen cases.

    Returns:
        0; 1 if ours missed a fault or accused a right gradient; 2 if an option is wrong.
    """
    simulate_devices()
    chosen = _chosen(args.only or (), args.limit)
    if args.list:
        print("\n".join(case.name for case in chosen))
        return 0
    installed = checkers()
    names = list(installed) if args.checkers is None else _named(args.checkers, list(installed))
    if args.without_reference:
        names = [name for name in names if name != OURS[0]]
    wrong = (
        "no checker is named so" if not names
        else "no case's name contains that" if not chosen
        else "--jobs must be at least 1" if args.jobs < 1
        else ""
    )  # fmt: skip
    if wrong:
        print(f"python -m benchmarks check: {wrong}", file=sys.stderr)
        return 2
    running = [name for name in names if installed[name]]
    trials: list[Trial] = []
    try:
        for trial in run_trials(chosen, running, args.jobs, args.seconds):
            trials.append(trial)
            _show_progress(len(trials), len(chosen) * len(running))
    except KeyboardInterrupt:  # what has been measured until then is of use
        print(f"\nstopped after {len(trials)} trials", file=sys.stderr)
        done = {trial.case for trial in trials}
        chosen = [case for case in chosen if case.name in done]
    absent = [name for name in names if not installed[name]]
    if args.json:
        print(json.dumps(as_data(chosen, trials, absent), indent=1, ensure_ascii=False))
    else:
        print_tables(chosen, trials, absent)
    return int(_ours_failed(chosen, trials))


def _chosen(parts: Sequence[str], limit: int | None) -> list[Case]:
    matching = [c for c in cases() if not parts or any(part in c.name for part in parts)]
    if limit is None or limit >= len(matching) or limit < 1:
        return matching
    return [matching[i * len(matching) // limit] for i in range(limit)]


def _named(words: str, names: Sequence[str]) -> list[str]:
    """Names that are one of the words, or else contain one."""
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    exact = [name for name in names if name in wanted]
    inexact = [word for word in wanted if word not in exact]
    return [name for name in names if name in exact or any(word in name for word in inexact)]


def _ours_failed(chosen: Sequence[Case], trials: Sequence[Trial]) -> bool:
    is_fault = {case.name: case.fault is not None for case in chosen}
    return any(
        trial.checker in OURS
        and not trial.unresolved
        and trial.objects != is_fault[trial.case]
        for trial in trials
    )  # fmt: skip


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total}", end="\n" if done == total else "", file=sys.stderr)
