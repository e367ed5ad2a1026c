"""Stage: one argument differentiated at a time, one output at a time.

Rules with symbolic zeros (``custom_vjp(…, symbolic_zeros=True)``, operations) are told which
arguments are differentiated and which outputs have a cotangent, and may take another path for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from functional_bp.check.arrays import Arrays, all_finite, distance
from functional_bp.check.evaluation import to_numpy
from functional_bp.check.findings import Finding
from functional_bp.check.trial import Trial

MOST = 4  # arguments, and outputs, that are taken one at a time
TOLERANCE = 1e-6  # relative


def parts(trial: Trial) -> None:
    """x̄ of each argument alone, and with the cotangent of each output alone."""
    subject, point = trial.subject, trial.point
    counts = (len(point.actives), len(point.bars))
    if not (subject.symbolic_zeros and subject.by_transform) or trial.quick or max(counts) < 2:
        return
    expected = trial.full.both(point).claimed
    if not all_finite(expected):
        return
    made = {f"{subject.names[k]} alone differentiated": (k, None) for k in range(counts[0])[:MOST]}
    if counts[1] > 1:
        made |= {f"output {j} alone with a cotangent": (None, j) for j in range(counts[1])[:MOST]}
    for label, (argument, output) in made.items():
        truth = expected if output is None else _with_zeros(trial, output)
        names = subject.names if argument is None else (subject.names[argument],)
        truth = truth if argument is None else (truth[argument],)
        try:
            with trial.full.precision():
                found = to_numpy(jax.jit(_pull(trial, argument, output))(*point))
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            _wrong(trial, label, "error", f"the claim raises {type(error).__name__}: {first}", None)
            return
        gaps = [distance(f, t) for f, t in zip(found, truth)]
        worst = int(np.argmax(gaps))
        if not gaps[worst] <= max(TOLERANCE, 1e2 * trial.full.unit):
            lost = not np.any(found[worst])
            text = f"the cotangent of {names[worst]} is another (relative {gaps[worst]:.1e}) than "
            text += "when the other " + ("outputs' are zero arrays" if argument is None else
                                         "arguments are differentiated too")  # fmt: skip
            _wrong(trial, label, "cotangent ignored" if lost else "other", text, names[worst])
            return
    trial.row("each argument and output alone", "right", "all together")


def _pull(trial: Trial, argument: int | None, output: int | None) -> Callable[..., Arrays]:
    """The claim for one argument, or for one output's cotangent: the others are not there."""
    value = trial.subject.value

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> Arrays:
        chosen = range(len(actives)) if argument is None else [argument]

        def of_chosen(*xs: Any) -> Any:
            mine = dict(zip(chosen, xs))
            outs = value(tuple(mine.get(k, x) for k, x in enumerate(actives)), fixed)
            return outs if output is None else outs[output]

        _, pullback = jax.vjp(of_chosen, *(actives[k] for k in chosen))
        return pullback(tuple(bars) if output is None else bars[output])

    return pull


def _with_zeros(trial: Trial, output: int) -> Arrays:
    """The claim where the other outputs' cotangents are arrays of zeros."""
    bars = [b if j == output else np.zeros_like(b) for j, b in enumerate(trial.point.bars)]
    return trial.full.both(trial.point._replace(bars=tuple(bars))).claimed


def _wrong(trial: Trial, label: str, kind: str, text: str, argument: str | None) -> None:
    message = f"{label}: {text} (symbolic zeros take another path)"
    trial.findings.append(Finding(kind, message, argument=argument, stage="parts"))
    trial.row(label, "wrong", "all together")
