"""In the dtypes that people use, the claim has to be as precise as a careful implementation.

The careful implementation is autodiff of the reference in the same dtype; the truth is float64.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from functional_bp.gradcheck import input_classes
from functional_bp.gradcheck.context import CheckContext
from functional_bp.gradcheck.evaluation import Evaluation, Point, Result
from functional_bp.gradcheck.findings import Finding, Kind, Outcome
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import all_finite, distance, nudged, single
from functional_bp.graph.interpret import unit_of

CARELESS = {"coarse": 10, "fine": 30}  # times the error that conditioning or autodiff explains
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
EXTREME_INPUTS = "extreme inputs in float32"


def precision(context: CheckContext) -> None:
    """Compare float32, bfloat16 and float16 with float64, and extreme inputs in float32."""
    subject = context.subject
    if context.full.bits == 32:
        return
    given = [np.dtype(x.dtype) for x in subject.actives]
    if any(d.kind == "c" for d in given):
        context.row("dtypes", Outcome.LEFT_OUT, "complex arguments")
        return
    finest = min(unit_of(d) for d in given)
    for dtype in DTYPES:
        if unit_of(dtype) >= finest and not (context.iterative and dtype != jnp.float32):
            _in_dtype(context, np.dtype(dtype))
            if any(f.kind in (Kind.PRECISION, Kind.OVERFLOW) for f in context.findings):
                return
    if finest <= unit_of(jnp.float32):
        _extremes(context)


def _in_dtype(context: CheckContext, dtype: np.dtype) -> None:
    label, against = f"{dtype.name} against float64", "autodiff in the same dtype"
    rounded = context.point.cast(lambda a: _round(a, dtype))
    if not all_finite(rounded.actives):
        context.row(label, Outcome.LEFT_OUT, "the inputs are not representable")
        return
    low = context.low if dtype == np.float32 else None
    low = low or Evaluation(context.subject, 32, dtype)
    both = None
    with Guard(f"the claim in {dtype.name}") as ran:
        both = low.both(rounded.cast(low.cast)), context.full.both(rounded)
    if both is None:
        context.row(label, Outcome.LEFT_OUT, f"raises {ran.raised}")
        return
    coarse, fine = both
    assert coarse.true is not None and fine.true is not None
    if context.iterative and not all_finite(coarse.outs):
        context.row(label, Outcome.LEFT_OUT, "a loop does not end")
        context.note(f"in {dtype.name} a while_loop of the forward pass does not end: is its "
                   "tolerance finer than that dtype resolves?")  # fmt: skip
        return
    unit = unit_of(dtype)
    moved = [_movement(context, rounded, fine, unit / 4) for _ in range(2)]
    factor = CARELESS["fine" if unit < 1e-4 else "coarse"]
    worst = (0.0, 0.0)
    for k, name in enumerate(context.subject.names):
        ours = distance(coarse.claimed[k], fine.claimed[k])
        theirs = distance(coarse.true[k], fine.true[k])
        explained = max(m[k] for m in moved)
        if not np.isfinite(theirs):
            continue
        limit = factor * max(theirs, explained, unit)
        worst = max(worst, (ours / limit, limit)) if np.isfinite(ours) else worst
        if not ours <= limit:
            finite = np.isfinite(ours)
            what = f"has the relative error {ours:.1e}" if finite else "is not finite"
            message = (
                f"right in float64, but in {dtype.name} the cotangent of {name} {what}; plain "
                f"autodiff of the reference has {theirs:.1e}, rounding the inputs alone "
                f"{explained:.1e}"
            )
            kind = Kind.PRECISION if finite else Kind.OVERFLOW
            finding = Finding(kind, message, argument=name, stage=label, relative_error=ours)
            context.wrong(finding, label, against, error=ours, limit=limit)
            return
    context.row(label, Outcome.RIGHT, against, error=worst[0] * worst[1], limit=worst[1])


def _movement(context: CheckContext, point: Point, here: Result, unit: float) -> list[float]:
    """How far rounding inputs and cotangents moves each cotangent of the reference, relative."""
    moved = context.full.both(point.cast(lambda a: nudged(context.rng, a, unit)))
    assert moved.true is not None and here.true is not None
    return [distance(a, b) for a, b in zip(moved.true, here.true)]


def _round(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype).astype(x.dtype)


def _extremes(context: CheckContext) -> None:
    """float32 on large and tiny inputs: finite where the truth and autodiff are."""
    low = context.low
    if low is None or context.iterative:
        return
    tried = 0
    for kind, actives, fixed in input_classes.candidates(
        context.point.actives, context.point.fixed, (), context.rng, input_classes.Trait.EXTREME
    ):
        point = Point(tuple(single(a).astype(a.dtype) for a in actives), fixed, context.point.bars)
        if context.leaves_domain(point):
            continue
        both = None
        with Guard("the claim on extreme inputs"):
            both = low.both(point.cast(single)), context.full.both(point)
        if both is None:  # they are not in the domain
            continue
        coarse, fine = both
        assert coarse.true is not None and fine.true is not None and coarse.true_outs is not None
        if not all_finite((*coarse.true_outs, *coarse.outs)):
            continue
        tried += 1
        for k, argument in enumerate(context.subject.names):
            truth = np.isfinite(coarse.true[k]) & np.isfinite(fine.true[k])
            lost = truth & ~np.isfinite(coarse.claimed[k])
            if lost.any():
                finding = Finding(
                    Kind.OVERFLOW,
                    f"in float32 the cotangent of {argument} is not finite in {int(lost.sum())}"
                    f" of {lost.size} entries where autodiff and the truth are (inputs: "
                    f"{kind.title}): an intermediate value overflows or underflows",
                    argument=argument,
                    stage=EXTREME_INPUTS,
                    inputs=kind.title,
                    wrong_entries=int(lost.sum()),
                    size=int(lost.size),
                    example=context.example(point),
                )
                context.wrong(finding, EXTREME_INPUTS, "autodiff in float32")
                return
    context.row(EXTREME_INPUTS, Outcome.RIGHT, f"autodiff in float32, {tried} classes")
