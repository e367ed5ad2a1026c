"""Before its values, it is looked at what the claim returns, and whether it repeats itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.engine.sweeps import unbroadcast
from functional_bp.errors import describe
from functional_bp.gradcheck import input_classes
from functional_bp.gradcheck.context import CheckContext
from functional_bp.gradcheck.diagnosis.localize import line_of_cotangent
from functional_bp.gradcheck.evaluation import Point, to_numpy
from functional_bp.gradcheck.findings import Finding, Kind, Outcome
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.input_classes import Integers
from functional_bp.gradcheck.subject import all_finite, double, farthest, nudged
from functional_bp.graph.interpret import unit_of

JIT_TOLERANCE = 2e-3  # relative, in float32: compilers reorder sums
STRUCTURE, REPEATED = "structure", "repeated calls"  # what findings and rows here are called
RETURNED = "number, shapes and dtypes of cotangents"


def shapes(context: CheckContext) -> None:
    """Look whether the claim runs, and its cotangents have the arguments' shapes and dtypes."""
    subject, native, found = context.subject, context.native, None
    with Guard("the claim, by its shapes") as ran:
        pull = partial(jax.eval_shape, subject.pull) if subject.traceable else subject.pull
        _, found = pull(*native)
    if found is None:
        _cannot_run(context, ran, native)
    else:
        _compare_shapes(context, native, found, dtypes=subject.traceable)
    outcome = Outcome.WRONG if context.findings else Outcome.RIGHT
    context.row(RETURNED, outcome, "the arguments")


def _cannot_run(context: CheckContext, ran: Guard, native: Point) -> None:
    """The claim raises: a wrong number or shape of cotangents, or an error of its own."""
    subject, found = context.subject, None
    if subject.backward is not None and subject.residuals is not None:
        with Guard("the backward pass, by its shapes"):
            kept = jax.eval_shape(subject.residuals, native.actives, native.fixed)
            found = jax.eval_shape(subject.backward, kept, native.fixed, native.bars)
    if found is not None and _compare_shapes(context, native, found, dtypes=False):
        return
    # No line of the person's raised: JAX or a check refuses what their backward pass has returned.
    refused = isinstance(ran.error, TypeError | ValueError) and not ran.ran_persons_code
    context.findings.append(
        Finding(
            Kind.STRUCTURE if refused else Kind.ERROR,
            f"the backward pass raises {ran.raised}: {ran.message or ran.raised}",
            stage=STRUCTURE,
            where=ran.place,
        )
    )


def _compare_shapes(context: CheckContext, native: Point, found: Any, *, dtypes: bool) -> bool:
    """Add what is wrong with the cotangents' shapes, and dtypes; returns whether anything is."""
    before = len(context.findings)
    for name, x, bar in zip(context.subject.names, native.actives, found):
        if np.shape(bar) != np.shape(x):
            context.findings.append(_wrong_shape(context, name, x, bar))
        elif dtypes and bar.dtype != x.dtype:
            message = (
                f"the cotangent of {name} is {describe(bar)}, the argument {describe(x)}; JAX "
                "accepts that silently, and what is computed from it changes precision"
            )
            context.findings.append(Finding(Kind.DTYPE, message, argument=name, stage=STRUCTURE))
    return len(context.findings) > before


def _wrong_shape(context: CheckContext, name: str, x: Any, bar: Any) -> Finding:
    shape, wanted = tuple(np.shape(bar)), tuple(np.shape(x))
    message = f"the cotangent of {name} has shape {shape}, the argument {wanted}"
    kind = Kind.STRUCTURE
    lead = len(shape) - len(wanted)
    if lead >= 0 and all(n in (1, m) for n, m in zip(wanted, shape[lead:])):
        axes = (*range(lead), *(lead + i for i, n in enumerate(wanted) if n != shape[lead + i]))
        axis = axes[0] if len(axes) == 1 else axes
        message += (
            f"; {name} was broadcast over axis {axis} in the forward pass, so its cotangent is "
            f"summed there: .sum({axis}{', keepdims=True' if not lead else ''})"
        )
        if _summed_is_right(context, name):
            kind = Kind.MISSING_SUM
        else:
            message += " (and its values are wrong besides)"
    where = line_of_cotangent(context.subject, name)
    return Finding(kind, message, argument=name, stage=STRUCTURE, where=where)


def _summed_is_right(context: CheckContext, name: str) -> bool:
    """Whether the wrongly shaped cotangent, summed over the broadcast axes, is the true one."""
    subject, point, reference = context.subject, context.point, context.subject.reference
    if subject.backward is None or subject.residuals is None or reference is None:
        return True
    k = subject.names.index(name)
    with Guard("the cotangent of the wrong shape"), context.full.precision():
        kept = subject.residuals(point.actives, point.fixed)
        bar = subject.backward(kept, point.fixed, point.bars)[k]
        _, pullback = jax.vjp(lambda *xs: reference(xs, point.fixed), *point.actives)
        true = pullback(point.bars)[k]
        summed = unbroadcast(bar, np.shape(point.actives[k]))
        return summed is not None and farthest([summed], [true]) < 1e-6
    return False


def repeated_calls(context: CheckContext) -> None:
    """Look whether equal calls give equal results, with others in between, and under jit."""
    subject, native = context.subject, context.native
    runs = [context.first_call, *(to_numpy(subject.pull(*native)[1]) for _ in range(2))]
    first, second = farthest(runs[0], runs[1]), farthest(runs[1], runs[2])
    if not _equal(runs[0], runs[1]) or not _equal(runs[1], runs[2]):
        stays = _equal(runs[1], runs[2]) or first > 1e3 * second
        kind = Kind.HIDDEN_STATE if stays else Kind.NOT_DETERMINISTIC
        message = (
            f"the second call gives another gradient than the first (relative {first:.1e}) and "
            "then stays: something is remembered between calls"
            if stays
            else "three equal calls give three different gradients (relative "
            f"{max(first, second):.1e}): something is drawn at random or counted"
        )
        context.wrong(Finding(kind, message, stage=REPEATED), REPEATED, "the first call")
        return
    gap = _interleaved(context, native, runs[0])
    if gap > 1e-5:
        message = (
            "the backward pass of one call changes once another call's forward pass has run "
            f"(relative {gap:.1e}): residuals are kept in a place that calls share"
        )
        context.wrong(
            Finding(Kind.HIDDEN_STATE, message, stage=REPEATED), REPEATED, "the first call"
        )
    else:
        context.row(REPEATED, Outcome.RIGHT, "the first call", error=0.0)
    if subject.traceable:
        _jit(context, native, runs[0])


def _interleaved(context: CheckContext, native: Point, alone: tuple[np.ndarray, ...]) -> float:
    """How far another call's forward pass in between changes a backward pass, relative."""
    subject, gap = context.subject, 0.0
    if subject.residuals is not None and subject.backward is not None:
        with Guard("the forward pass by itself"):
            kept = subject.residuals(native.actives, native.fixed)
            other = tuple((0.7 * x).astype(x.dtype) for x in native.actives)
            subject.residuals(other, native.fixed)
            gap = farthest(to_numpy(subject.backward(kept, native.fixed, native.bars)), alone)
    return gap if np.isfinite(gap) else 0.0


def _other_inputs(context: CheckContext, native: Point) -> Point:
    """Other arguments of the same shapes and dtypes: numbers, indices, keys."""
    actives, fixed = input_classes.draw(
        input_classes.NEAR,
        tuple(np.asarray(x) for x in native.actives),
        tuple(map(input_classes.other_key, native.fixed)),
        np.random.default_rng(11),
        context.integer_ranges,
        Integers.DRAWN,
    )
    cast = lambda new, old: jnp.asarray(new).astype(old.dtype)
    return Point(tuple(map(cast, actives, native.actives)), tuple(map(cast, fixed, native.fixed)),
                 native.bars)  # fmt: skip


def _remembers(
    context: CheckContext, native: Point, compiled: Callable[..., Any], limit: float
) -> float | None:
    """How far a call without jit, after calls with other inputs, is from the same one under jit."""
    other = _other_inputs(context, native)
    with Guard("a call with other inputs"):  # they may be outside the domain
        alone, after = to_numpy(compiled(*other)), to_numpy(context.subject.pull(*other)[1])
        if all_finite((*alone, *after)):
            gap = farthest(after, alone)
            if gap > limit and gap > 30 * _movement(context, limit / 1e4, other):
                return gap
    return None


def _jit(context: CheckContext, native: Point, eager: tuple[np.ndarray, ...]) -> None:
    subject, against = context.subject, "the same call without jit"
    compiled = jax.jit(lambda *parts: subject.pull(*parts)[1])
    gap = farthest(to_numpy(compiled(*native)), eager)
    coarsest = max([1e-7, *(unit_of(x.dtype) for x in native.actives)])
    limit = JIT_TOLERANCE if coarsest < 1e-5 else 0.2
    if gap > limit and np.isfinite(gap):
        limit = max(limit, 30 * _movement(context, coarsest))
    if gap > limit and all_finite(eager):
        message = (
            f"jit changes the gradient (relative {gap:.1e}): the code tells tracers from "
            "arrays, or compares values in Python"
        )
        context.wrong(
            Finding(Kind.JIT, message, stage="jit"), "jit", against, error=gap, limit=limit
        )
        return
    context.row("jit", Outcome.RIGHT, against, error=gap, limit=limit)
    apart = _remembers(context, native, compiled, limit)
    if apart is not None:
        message = (
            "on other inputs of the same shapes the gradient is not theirs "
            f"(relative {apart:.1e} from the same call under jit): something of the first "
            "call's is kept for the later ones"
        )
        finding = Finding(Kind.HIDDEN_STATE, message, stage=REPEATED)
        context.wrong(finding, "calls with other inputs", "the same call under jit", error=apart)


def _movement(context: CheckContext, unit: float, point: Point | None = None) -> float:
    """How far rounding to a coarser dtype alone moves the gradient, relative."""
    point = context.point if point is None else point.cast(double)
    here = context.full.both(point)
    moved = context.full.both(point.cast(lambda a: nudged(context.rng, a, unit)))
    return farthest(moved.true or moved.claimed, here.true or here.claimed)


def _equal(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))
