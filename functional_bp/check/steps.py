"""``check_steps``: a whole derivation, one cotangent after the other, from the output backwards.

A step is judged by itself, given the ones before it as claimed (``cuts``): an error in h̄ does not
make z̄ wrong if z̄ follows from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from functional_bp.check import inputs
from functional_bp.check.arrays import distance, double, normal
from functional_bp.check.claims import roundings_of
from functional_bp.check.clock import now
from functional_bp.check.cuts import Cut, evaluate_claims, given, parameters
from functional_bp.check.diagnosis import describe_values, diagnose
from functional_bp.check.findings import Finding, Row, worst_entries
from functional_bp.check.report import Report
from functional_bp.check.subject import Diagnosis, Disagreement, Sample, Subject
from functional_bp.graph.names import function_name

DIAGNOSIS_SECONDS = 3.0
DRAWS = 16  # of roundings
TOO_COARSE = 0.5  # of a cotangent: beyond that, roundings could hide a wrong one
DEVIATIONS = 3.0  # of ±r: five of the standard deviations of a rounding, which is less than r


@np.errstate(all="ignore")  # what is not finite is for the report
def check_steps(
    fun: Callable[..., Any],
    *args: Any,
    claims: Mapping[str, Any],
    name: str | None = None,
) -> Report:
    """Is a derivation right, step by step, and which step is the first that is not.

    Args:
        fun: a function with a real scalar output, whose intermediates carry names:
            ``h = bp.name(jnp.tanh(z), "h")``.
        *args: the point at which its gradient is taken.
        claims: cotangents by name, of intermediates and of arguments: ``{"o": o_bar, "h": …,
            "W1": …}``. A value is an array; or a function whose parameters say what it is given:
            values by name, claimed cotangents by name with ``_bar``
            (``"h": lambda o_bar, W2: W2.T @ o_bar``). Numbers that all have two to six decimals
            count as rounded to those, and what follows from them may be off by as much as that
            makes of it.
        name: what to call it in the report.

    Returns:
        A report. Its findings name the first wrong step; every later one is judged given the
        earlier as claimed.

    Raises:
        ValueError: a claim is for a name that the function does not have.
        TypeError: the output is no scalar.

    Example:
        >>> import functional_bp as bp, jax.numpy as jnp
        >>> def loss(w, x):
        ...     z = bp.name(w * x, "z")
        ...     return jnp.sum(z**2)
        >>> w, x = jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])
        >>> bp.check_steps(loss, w, x, claims={
        ...     "z": lambda z: 2 * z, "w": lambda z_bar, x: z_bar * x}).verdict
        'right'
    """
    started = time.monotonic()
    with jax.enable_x64(True):
        cut = Cut(fun, args, claims)
        named = {cut.full_name(key): claim for key, claim in claims.items()}
        values = cut.values()
        claimed = evaluate_claims(named, values)
        true = cut.true_bars()
        fitting = {k: v for k, v in claimed.items() if v.shape == true[k].shape}
        seeds = {t: fitting.get(t, true[t]) for t in cut.order}
        following = cut.pull(seeds)
        own, rounding = _roundings(cut, named, seeds, following)
        rows: list[Row] = []
        findings: list[Finding] = []
        notes: list[str] = []
        reasons: list[str] = []
        for step in _backwards(cut, claimed):
            ours, theirs = claimed[step], following[step]
            wrong = _wrong_entries(ours, theirs, rounding[step])
            is_true = _wrong_entries(ours, true[step], rounding[step]) is None
            follows = wrong is None and not is_true and distance(ours, true[step]) > 1e-6
            limit = distance(theirs + rounding[step], theirs) if rounding[step].any() else None
            is_open = wrong is None and limit is not None and limit > TOO_COARSE
            is_open = is_open and _wrong_entries(ours, theirs, own[step]) is not None
            if is_open:
                reasons.append(
                    f"the cotangent of {step} is not decided: for the digits that the steps before "
                    f"it lack, it may be off by {limit:.0%}; write down more of them"
                )
            rows.append(
                Row(
                    f"cotangent of {step}",
                    "unresolved" if is_open else "right" if wrong is None else "wrong",
                    distance(ours, theirs) if ours.shape == theirs.shape else None,
                    limit,
                    against="follows from the steps before, as claimed"
                    if follows
                    else "the chain rule from the steps before",
                )
            )
            if follows:
                notes.append(
                    f"the cotangent of {step} is not the true one, but it follows rightly from the "
                    "wrong step before"
                )
            if wrong is not None:
                findings.append(
                    _finding(cut, step, named[step], seeds, ours, theirs, wrong, rounding[step])
                )
    if findings:
        notes.insert(0, f"the first wrong step is the cotangent of {findings[0].argument}")
    return Report(
        name=name or function_name(fun),
        verdict="wrong" if findings else "inconclusive" if reasons else "right",
        findings=tuple(findings),
        rows=tuple(rows),
        notes=tuple(notes),
        reasons=tuple(reasons),
        seconds=time.monotonic() - started,
        settings={"jax": jax.__version__, "backend": jax.default_backend(),
                  "precision": "float64", "reference": "the chain rule"},
    )  # fmt: skip


def _backwards(cut: Cut, claimed: Mapping[str, Any]) -> list[str]:
    """The claimed names from the output backwards: intermediates, then arguments."""
    first = [t for t in reversed(cut.order) if t in claimed]
    return first + [name for name in claimed if name not in cut.order]


def _roundings(
    cut: Cut,
    claims: Mapping[str, Any],
    seeds: Mapping[str, np.ndarray],
    following: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """How far each step's entries may be off for the digits that were not written down.

    For those of the step's own numbers; and, besides, for those of the steps before it that it
    follows from: roundings by ±r move an entry by Σⱼ ±Jᵢⱼ rⱼ, of which draws give the standard
    deviation.
    """
    units = dict(zip(claims, roundings_of(list(claims.values()))))
    own = {step: np.full(following[step].shape, r) for step, r in units.items()}
    if not any(units.get(step, 0.0) for step in cut.order):
        return own, own
    rng = np.random.default_rng(0)
    squares = {step: np.zeros(bar.shape) for step, bar in own.items()}
    for _ in range(DRAWS):
        moved = {
            step: bar + units.get(step, 0.0) * rng.choice([-1.0, 1.0], bar.shape)
            for step, bar in seeds.items()
        }
        for step, bar in cut.pull(moved).items():
            if step in squares:
                squares[step] += (bar - following[step]) ** 2 / DRAWS
    return own, {step: r + DEVIATIONS * np.sqrt(squares[step]) for step, r in own.items()}


def _wrong_entries(
    claimed: np.ndarray, true: np.ndarray, rounding: np.ndarray
) -> np.ndarray | None:
    """Where a step's cotangent is wrong; None where it is right."""
    if claimed.shape != true.shape:
        return np.ones(true.shape, bool)
    limit = rounding + 1e-9 * np.max(np.abs(true), initial=0.0) + 1e-9 * np.abs(true)
    with np.errstate(all="ignore"):
        wrong = ~(np.abs(claimed - true) <= limit)
    return wrong if wrong.any() else None


def _finding(
    cut: Cut,
    step: str,
    claim: Any,
    seeds: Mapping[str, Any],
    claimed: np.ndarray,
    true: np.ndarray,
    wrong: np.ndarray,
    rounding: np.ndarray,
) -> Finding:
    """What is wrong with one step, diagnosed where its claim is a function."""
    if claimed.shape != true.shape:
        message = f"the cotangent of {step} has shape {claimed.shape}, {step} has {true.shape}"
        return Finding("structure", message, argument=step, stage="cotangent")
    diagnosis = _of_function(cut, step, claim, seeds, wrong) if callable(claim) else None
    if diagnosis is None or not diagnosis.message:
        kind, message = describe_values(step, claimed, true, float(rounding.max(initial=0.0)))
        diagnosis = Diagnosis(kind, message)
    return Finding(
        diagnosis.kind,
        f"the cotangent of {step} does not follow from the steps before it: {diagnosis.message}",
        argument=step,
        stage="cotangent",
        where=diagnosis.where,
        repair=diagnosis.repair,
        explanations=diagnosis.explanations,
        relative_error=distance(claimed, true),
        wrong_entries=int(wrong.sum()),
        size=int(wrong.size),
        entries=worst_entries(claimed, true),
    )


def _of_function(
    cut: Cut, step: str, claim: Callable[..., Any], seeds: Mapping[str, Any], wrong: np.ndarray
) -> Diagnosis | None:
    """The diagnosis of a claim that is a function: a pullback from the cotangents it names.

    Its operands are the step's own value, whose cotangent is judged, and the values that it names.
    """
    asked = parameters(claim)
    values = cut.values()
    of_bars = [p for p in asked if p.endswith("_bar") and given(p, {}, seeds) is not None]
    of_values = [p for p in asked if p not in of_bars]
    rng = np.random.default_rng(11)

    def operands(at: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        return (at[step], *(np.asarray(given(p, at, {})) for p in of_values))

    def backward(kept: Mapping[str, Any], _: Any, bars: tuple[Any, ...]) -> tuple[Any, ...]:
        found = claim(**{p: kept[p] for p in of_values}, **dict(zip(of_bars, bars)))
        return (found, *(0 * kept[p] for p in of_values))

    def sample(at: Mapping[str, Any], bars: Mapping[str, Any], true: Any) -> Sample:
        actives = operands(at)
        given_bars = tuple(np.asarray(given(p, {}, bars)) for p in of_bars)
        kept = dict(zip(of_values, actives[1:]))
        found = tuple(map(double, backward(kept, (), given_bars)))
        zeros = tuple(np.zeros_like(f) for f in found[1:])
        return Sample(actives, (), given_bars, given_bars, found, (double(true), *zeros))

    def fresh() -> Sample:
        moved, _ = inputs.draw(inputs.CLASSES["near"], "kept", cut.actives, (), rng)
        bars = {t: normal(rng, np.zeros(np.shape(b))) for t, b in seeds.items()}
        return sample(cut.values(moved), bars, cut.pull(bars, moved)[step])

    try:
        here = sample(values, seeds, cut.pull(seeds)[step])
    except Exception:  # a claim that only works on the types it was written for
        return None
    subject = Subject(
        name=step,
        names=(step, *of_values),
        actives=here.actives,
        fixed=(),
        value=lambda actives, fixed: here.bars,
        pull=lambda actives, fixed, bars: (
            bars, backward(dict(zip(of_values, actives[1:])), fixed, bars)
        ),
        residuals=lambda actives, fixed: dict(zip(of_values, actives[1:])),
        backward=backward,
        source=claim,
    )  # fmt: skip
    masks = (wrong, *(np.zeros(np.shape(a), bool) for a in here.actives[1:]))
    found = diagnose(Disagreement(subject, 0, here, masks, fresh), now() + DIAGNOSIS_SECONDS)
    return _with_names(found, of_bars)


def _with_names(diagnosis: Diagnosis, of_bars: list[str]) -> Diagnosis:
    """The diagnosis with the cotangents' own names in place of ``y_bar``."""
    places = {"y_bar": of_bars[0]} if len(of_bars) == 1 else {
        f"y_bar[{i}]": name for i, name in enumerate(of_bars)
    }  # fmt: skip

    def renamed(text: str) -> str:
        for place, name in places.items():
            text = text.replace(place, name)
        return text

    return Diagnosis(
        diagnosis.kind,
        renamed(diagnosis.message),
        tuple(map(renamed, diagnosis.explanations)),
        diagnosis.where,
        diagnosis.repair,
    )
