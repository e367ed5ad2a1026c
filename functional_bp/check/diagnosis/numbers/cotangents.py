"""What the claim does with ȳ: it must be linear in it, and use the cotangent of every output."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis

NEAR = 1e-6  # relative; in float64 anything but linear is off by far more
STEP = 1e-3  # by which an argument is moved to see whether an output depends on it


def cotangent_hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """Calls the claim with other cotangents: none, doubled, reversed, one output's left out."""
    if evidence.subject.only_here:
        return []
    try:
        return _linearity(evidence) or _ignored(evidence)
    except Exception:  # the person's code, called as nobody has called it yet
        return []


def _linearity(evidence: Evidence) -> list[Hypothesis]:
    name = evidence.argument
    ybar = _together(evidence)
    tests: list[tuple[str, str, Callable[[Case], bool]]] = [
        (
            "cotangent ignored",
            f"the cotangent of {name} does not change with {ybar}: {ybar} is not used",
            lambda case: (
                _same(_claim(evidence, case, 0.0), case.claimed)
                and _same(_claim(evidence, case, 2.0), case.claimed)
            ),
        ),
        (
            "not linear",
            f"the cotangent of {name} is not zero where {ybar} is: a term without {ybar} is added",
            lambda case: not _same(_claim(evidence, case, 0.0), 0 * case.claimed, case.claimed),
        ),
        (
            "not linear",
            f"the cotangent of {name} is quadratic in {ybar}: {ybar} is multiplied in twice",
            lambda case: (
                _same(_claim(evidence, case, 2.0), 4 * case.claimed)
                and _same(_claim(evidence, case, -1.0), case.claimed)
            ),
        ),
        (
            "not linear",
            f"the cotangent of {name} depends on the size of {ybar} alone, not on its sign",
            lambda case: (
                _same(_claim(evidence, case, -1.0), case.claimed)
                and _same(_claim(evidence, case, 2.0), 2 * case.claimed)
            ),
        ),
        (
            "not linear",
            f"the cotangent of {name} is not linear in {ybar}: twice {ybar} must give twice",
            lambda case: (
                not _same(_claim(evidence, case, 2.0), 2 * case.claimed)
                or not _same(_claim(evidence, case, -1.0), -case.claimed)
            ),
        ),
    ]
    if not np.any(evidence.given.claimed):
        return []
    for kind, message, test in tests:
        if evidence.late:
            break
        if all(test(case) for case in evidence.cases[:3]):
            message = evidence.here + message
            return [Hypothesis(kind, message, cost=0.3, fresh_samples=len(evidence.fresh[:2]))]
    return []


def _ignored(evidence: Evidence) -> list[Hypothesis]:
    """Outputs that depend on the argument, and whose cotangent makes no difference."""
    bars = list(evidence.given.bars)
    found = []
    for k, bar in enumerate(bars if len(bars) > 1 else []):
        if evidence.late:
            break
        unused = all(
            _same(_claim(evidence, case, 0.0, only=k), case.claimed) for case in evidence.cases[:3]
        )
        if unused and _depends(evidence, k):
            message = (
                f"{evidence.here}{bar} makes no difference to the cotangent of "
                f"{evidence.argument}, though that output depends on {evidence.argument}"
            )
            count = len(evidence.fresh[:2])
            found.append(Hypothesis("cotangent ignored", message, cost=0.4, fresh_samples=count))
    return found


def _claim(evidence: Evidence, case: Case, scale: float, only: int | None = None) -> np.ndarray:
    """The claim with the cotangents of all outputs scaled, or of one only."""
    bars = tuple(
        bar * scale if only is None or only == k else bar for k, bar in enumerate(case.sample.bars)
    )
    with jax.enable_x64(True):
        cotangents = evidence.pull(case.sample.actives, case.sample.fixed, bars)
    claimed = np.asarray(cotangents[evidence.disagreement.argument])
    return np.where(np.isfinite(case.sample.true[evidence.disagreement.argument]), claimed, 0)


def _depends(evidence: Evidence, output: int) -> bool:
    position, sample = evidence.disagreement.argument, evidence.given.sample
    actives = list(sample.actives)
    rng = np.random.default_rng(0)
    moved = np.asarray(actives[position])
    actives[position] = moved + STEP * rng.standard_normal(moved.shape) * (1 + np.abs(moved))
    with jax.enable_x64(True):
        outs = evidence.subject.value(tuple(actives), sample.fixed)
    return not _same(np.asarray(outs[output]), np.asarray(sample.outs[output]))


def _same(a: np.ndarray, b: np.ndarray, scale: np.ndarray | None = None) -> bool:
    size = np.linalg.norm(b if scale is None else scale)
    return bool(np.linalg.norm(a - b) <= NEAR * size)


def _together(evidence: Evidence) -> str:
    bars = list(evidence.given.bars)
    return bars[0] if len(bars) == 1 else "the outputs' cotangents"
