"""Stage: what the claim returns, before its values are looked at, and whether it repeats itself."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.engine.sweeps import unbroadcast
from functional_bp.errors import describe
from functional_bp.gradcheck import input_classes
from functional_bp.gradcheck.context import Context
from functional_bp.gradcheck.evaluation import Point, to_numpy
from functional_bp.gradcheck.findings import Finding, Place
from functional_bp.gradcheck.subject import all_finite, double, farthest, nudged
from functional_bp.graph.interpret import unit_of

JIT_TOLERANCE = 2e-3  # relative, in float32: compilers reorder sums
PACKAGES = ("site-packages", "functional_bp/gradcheck", "functional_bp/graph", "<")


def shapes(context: Context) -> None:
    """The claim can be evaluated, and returns cotangents of the arguments' shapes and dtypes."""
    subject, native = context.subject, context.native
    try:
        if subject.traceable:
            _, found = jax.eval_shape(subject.pull, *native)
        else:
            _, found = subject.pull(*native)
    except Exception as error:
        _cannot_run(context, error, native)
        return
    for name, x, bar in zip(subject.names, native.actives, found):
        if np.shape(bar) != np.shape(x):
            _wrong_shape(context, name, x, bar)
        elif bar.dtype != x.dtype and subject.traceable:
            context.findings.append(
                Finding(
                    "dtype",
                    f"the cotangent of {name} is {describe(bar)}, the argument {describe(x)}; JAX "
                    "accepts that silently, and what is computed from it changes precision",
                    argument=name,
                    stage="structure",
                )
            )
    outcome = "wrong" if context.findings else "right"
    context.row("number, shapes and dtypes of cotangents", outcome, "the arguments")


def _cannot_run(context: Context, error: Exception, native: Point) -> None:
    """The claim raises: a wrong number or shape of cotangents, or an error of its own."""
    subject = context.subject
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    before = len(context.findings)
    if subject.backward is not None and subject.residuals is not None:
        try:
            kept = jax.eval_shape(subject.residuals, native.actives, native.fixed)
            found = jax.eval_shape(subject.backward, kept, native.fixed, native.bars)
        except Exception:  # it raises by itself: told below
            found = ()
        for name, x, bar in zip(subject.names, native.actives, found):
            if np.shape(bar) != np.shape(x):
                _wrong_shape(context, name, x, bar)
    if len(context.findings) == before:
        words = ("custom vjp", "cotangent", "structure", "pytree", "bwd rule", "must produce")
        structural = any(word in str(error).lower() for word in words)
        where = place_of(error)
        context.findings.append(
            Finding(
                "structure" if structural else "error",
                f"the backward pass raises {type(error).__name__}: {first}",
                stage="structure",
                where=where,
            )
        )
    context.row("number, shapes and dtypes of cotangents", "wrong", "the arguments")


def _wrong_shape(context: Context, name: str, x: Any, bar: Any) -> None:
    shape, wanted = tuple(np.shape(bar)), tuple(np.shape(x))
    message = f"the cotangent of {name} has shape {shape}, the argument {wanted}"
    kind, repair = "structure", ""
    lead = len(shape) - len(wanted)
    if lead >= 0 and all(n in (1, m) for n, m in zip(wanted, shape[lead:])):
        axes = (*range(lead), *(lead + i for i, n in enumerate(wanted) if n != shape[lead + i]))
        axis = axes[0] if len(axes) == 1 else axes
        kind = "missing sum"
        repair = (
            f"; {name} was broadcast over axis {axis} in the forward pass, so its cotangent is "
            f"summed there: .sum({axis}{', keepdims=True' if not lead else ''})"
        )
        if not _summed_is_right(context, name):
            kind, repair = "structure", repair + " (and its values are wrong besides)"
    context.findings.append(
        Finding(
            kind, message + repair, argument=name, stage="structure", where=_line(context, name)
        )
    )


def _summed_is_right(context: Context, name: str) -> bool:
    """Whether the wrongly shaped cotangent, summed over the broadcast axes, is the true one."""
    subject, point = context.subject, context.point
    if subject.backward is None or subject.residuals is None or subject.reference is None:
        return True
    k = subject.names.index(name)
    try:
        with context.full.precision():
            kept = subject.residuals(point.actives, point.fixed)
            bar = subject.backward(kept, point.fixed, point.bars)[k]
            reference = subject.reference
            _, pullback = jax.vjp(lambda *xs: reference(xs, point.fixed), *point.actives)
            true = pullback(point.bars)[k]
            summed = unbroadcast(bar, np.shape(point.actives[k]))
    except Exception:  # not even its values can be had
        return False
    return summed is not None and farthest([summed], [true]) < 1e-6


def _line(context: Context, name: str) -> Place | None:
    """The line of the backward pass that makes the cotangent of an argument."""
    from functional_bp.gradcheck.diagnosis.diagnose import line_of_cotangent

    return line_of_cotangent(context.subject, name)


def place_of(error: BaseException) -> Place | None:
    """The innermost line of a person's code in an error's traceback."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename for part in PACKAGES)
    ]
    if not frames:
        return None
    last = frames[-1]
    return Place(str(Path(last.filename)), last.lineno or 0, (last.line or "").strip())


def repeated_calls(context: Context) -> None:
    """Equal calls give equal results, also when others come between, and under jit."""
    subject, native = context.subject, context.native
    runs = [context.first_call, *(to_numpy(subject.pull(*native)[1]) for _ in range(2))]
    first, second = farthest(runs[0], runs[1]), farthest(runs[1], runs[2])
    if not _equal(runs[0], runs[1]) or not _equal(runs[1], runs[2]):
        stays = _equal(runs[1], runs[2]) or first > 1e3 * second
        kind = "hidden state" if stays else "not deterministic"
        message = (
            f"the second call gives another gradient than the first (relative {first:.1e}) and "
            "then stays: something is remembered between calls"
            if stays
            else "three equal calls give three different gradients (relative "
            f"{max(first, second):.1e}): something is drawn at random or counted"
        )
        context.findings.append(Finding(kind, message, stage="repeated calls"))
        context.row("repeated calls", "wrong", "the first call")
        return
    if _interleaved(context, native, runs[0]):
        context.row("repeated calls", "right", "the first call", error=0.0)
    if subject.traceable:
        _jit(context, native, runs[0])


def _interleaved(context: Context, native: Point, alone: tuple[np.ndarray, ...]) -> bool:
    """A backward pass is not changed by another call's forward pass in between."""
    subject = context.subject
    if subject.residuals is None or subject.backward is None:
        return True
    try:
        kept = subject.residuals(native.actives, native.fixed)
        subject.residuals(tuple((0.7 * x).astype(x.dtype) for x in native.actives), native.fixed)
        found = to_numpy(subject.backward(kept, native.fixed, native.bars))
    except Exception:  # the forward pass cannot be run by itself
        return True
    gap = farthest(found, alone)
    if gap <= 1e-5 or not np.isfinite(gap):
        return True
    context.findings.append(
        Finding(
            "hidden state",
            "the backward pass of one call changes once another call's forward pass has run "
            f"(relative {gap:.1e}): residuals are kept in a place that calls share",
            stage="repeated calls",
        )
    )
    context.row("repeated calls", "wrong", "the first call")
    return False


def _other_inputs(context: Context, native: Point) -> Point:
    """Other arguments of the same shapes and dtypes: numbers, indices, keys."""
    actives, fixed = input_classes.draw(
        input_classes.CLASSES["near"], "drawn", tuple(np.asarray(x) for x in native.actives),
        tuple(map(input_classes.other_key, native.fixed)), np.random.default_rng(11),
        context.integer_ranges,
    )  # fmt: skip
    cast = lambda new, old: jnp.asarray(new).astype(old.dtype)
    return Point(tuple(map(cast, actives, native.actives)), tuple(map(cast, fixed, native.fixed)),
                 native.bars)  # fmt: skip


def _remembers(
    context: Context, native: Point, compiled: Callable[..., Any], limit: float
) -> float | None:
    """How far a call without jit, after calls with other inputs, is from the same one under jit."""
    other = _other_inputs(context, native)
    try:
        alone, after = to_numpy(compiled(*other)), to_numpy(context.subject.pull(*other)[1])
    except Exception:  # the other inputs are outside the domain
        return None
    if not all_finite((*alone, *after)):
        return None
    gap = farthest(after, alone)
    return gap if gap > limit and gap > 30 * _movement(context, limit / 1e4, other) else None


def _jit(context: Context, native: Point, eager: tuple[np.ndarray, ...]) -> None:
    subject = context.subject
    compiled = jax.jit(lambda *parts: subject.pull(*parts)[1])
    jitted = to_numpy(compiled(*native))
    gap = farthest(jitted, eager)
    coarsest = max([1e-7, *(unit_of(x.dtype) for x in native.actives)])
    limit = JIT_TOLERANCE if coarsest < 1e-5 else 0.2
    if gap > limit and np.isfinite(gap):
        limit = max(limit, 30 * _movement(context, coarsest))
    if gap > limit and all(np.all(np.isfinite(e)) for e in eager):
        context.findings.append(
            Finding(
                "jit",
                f"jit changes the gradient (relative {gap:.1e}): the code tells tracers from "
                "arrays, or compares values in Python",
                stage="jit",
            )
        )
        context.row("jit", "wrong", "the same call without jit", error=gap, limit=limit)
        return
    context.row("jit", "right", "the same call without jit", error=gap, limit=limit)
    apart = _remembers(context, native, compiled, limit)
    if apart is not None:
        context.findings.append(
            Finding(
                "hidden state",
                "on other inputs of the same shapes the gradient is not theirs "
                f"(relative {apart:.1e} from the same call under jit): something of the first "
                "call's is kept for the later ones",
                stage="repeated calls",
            )
        )
        context.row("calls with other inputs", "wrong", "the same call under jit", error=apart)


def _movement(context: Context, unit: float, point: Point | None = None) -> float:
    """How far rounding to a coarser dtype alone moves the gradient, relative."""
    point = context.point if point is None else point.cast(double)
    here = context.full.both(point)
    moved = context.full.both(point.cast(lambda a: nudged(context.rng, a, unit)))
    return farthest(moved.true or moved.claimed, here.true or here.claimed)


def _equal(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))
