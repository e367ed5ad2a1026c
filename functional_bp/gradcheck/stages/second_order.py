"""The second derivative has to be right, and the adjoint identity to hold."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.gradcheck.context import CheckContext
from functional_bp.gradcheck.derivatives import slope
from functional_bp.gradcheck.evaluation import pull_reference
from functional_bp.gradcheck.findings import Finding, Kind, Outcome
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.judging import any_of, exceeding
from functional_bp.gradcheck.subject import Arrays, all_finite, farthest, normal, nudged, pairing

NOISE = 16  # a second derivative moves more than a first by as much
TOLERANCE = 1e-6  # relative
SECOND, ADJOINT = "second order", "adjoint identity"
BY_REFERENCE = "the reference differentiated twice"


def second_order(context: CheckContext) -> None:
    """Differentiate the claim: compare ∂/∂x of ⟨v, x̄(x, ȳ)⟩ with the reference's."""
    subject, point = context.subject, context.point
    directions = tuple(normal(context.rng, x) for x in point.actives)

    def along(actives: Arrays, bars: Arrays, fixed: Arrays, vs: Arrays, claim: bool) -> Any:
        pull = subject.pull if claim else partial(pull_reference, subject)
        _, found = pull(actives, fixed, bars)
        return sum(jnp.sum(jnp.real(v * bar)) for v, bar in zip(vs, found))

    compiled = jax.jit(jax.grad(along), static_argnums=4)
    rest = (point.bars, point.fixed, directions)
    slopes = lambda at, claim: [np.asarray(a) for a in compiled(at, *rest, claim)]
    claimed = witness = None
    with Guard("the claim differentiated again") as ran, context.full.precision():
        claimed = slopes(point.actives, True)
    if claimed is None:
        why = f"the claim cannot be differentiated again: {ran.raised}"
        context.row(SECOND, Outcome.LEFT_OUT, why)
        return
    if context.has_reference:
        with Guard("the reference differentiated again"), context.full.precision():
            true = slopes(point.actives, False)
            moved = tuple(nudged(context.rng, x, context.full.unit) for x in point.actives)
            witness = true, slopes(moved, False), slopes(moved, True)
    if witness is None:
        _by_differences(context, directions, claimed)
        return
    true, again, again_claimed = witness
    if not all_finite(true):
        context.row(SECOND, Outcome.LEFT_OUT, "the reference's is not finite here")
        return
    with np.errstate(invalid="ignore"):
        noise = [
            NOISE * np.maximum(np.abs(a - b), np.abs(c - d))
            for a, b, c, d in zip(again, true, again_claimed, claimed)
        ]
    noise = [np.where(np.isfinite(n), n, 0.0) for n in noise]
    noise = [
        np.maximum(n, np.max(n, axis=-1, keepdims=True)) if n.ndim and n.size else n for n in noise
    ]
    natural = _natural(context, directions)
    allowed = [
        context.limits.allowed(t, n, natural, 1e3 * context.full.unit) for t, n in zip(true, noise)
    ]
    masks = list(map(exceeding, claimed, true, allowed))
    gap = farthest(claimed, true)
    if any_of(masks) and gap > (1e-3 if context.iterative else TOLERANCE):
        _wrong(context, [n for n, m in zip(context.subject.names, masks) if m.any()], gap)
    else:
        context.row(SECOND, Outcome.RIGHT, BY_REFERENCE, error=gap)


def _natural(context: CheckContext, directions: Arrays) -> float:
    """The first derivative's natural unit along the directions, of which the second is a rest.

    Where a softmax is saturated the first derivative is what rounding left of a cancellation, and
    that has no derivative.
    """
    here = context.full.both(context.point)
    units = context.limits.natural(context.point, here.outs, here.claimed)
    return sum(u * float(np.max(np.abs(v), initial=0.0)) for u, v in zip(units, directions))


def _wrong(context: CheckContext, names: list[str], gap: float) -> None:
    finding = Finding(
        Kind.SECOND_ORDER,
        f"the first derivative is right, the second is wrong (relative {gap:.1e}): a part of "
        "the backward pass is not differentiated (stop_gradient, a residual made outside JAX, "
        "a rule inside the backward pass)",
        argument=names[0] if len(names) == 1 else None,
        stage=SECOND,
        relative_error=gap,
    )
    context.wrong(finding, SECOND, BY_REFERENCE, error=gap)


def _by_differences(context: CheckContext, directions: Arrays, claimed: list[np.ndarray]) -> None:
    """The second derivative along one direction, by differences of the claim itself."""
    point = context.point
    ways = tuple(normal(context.rng, x) for x in point.actives)

    def first(step: float) -> float:
        moved = tuple(x + step * w for x, w in zip(point.actives, ways))
        return pairing(directions, context.full.both(point._replace(actives=moved)).claimed)

    found, value = slope(first), pairing(ways, claimed)
    limit = 100 * found.error + 1e-4 * max(abs(found.value), abs(value)) + 1e-9 * abs(first(0.0))
    limit += 1e-9 * _natural(context, directions)
    step = 1e-6
    ahead, behind = first(step) - first(0.0), first(0.0) - first(-step)
    smooth = abs(ahead - behind) < 1e-2 * (abs(ahead) + abs(behind)) + 1e-12 * abs(first(0.0))
    if not found.resolved or not smooth or not np.isfinite(value):
        context.row(SECOND, Outcome.UNRESOLVED, "differences of the claim do not settle")
    elif abs(value - found.value) > limit and context.full.unit < 1e-15:
        _wrong(context, [], abs(value - found.value) / (abs(found.value) + 1e-300))
    else:
        error = abs(value - found.value) / (abs(found.value) + 1e-300)
        context.row(SECOND, Outcome.RIGHT, "differences of the claim", error=error)


def adjoint_identity(context: CheckContext) -> None:
    """Compare ⟨ȳ, J v⟩ with ⟨x̄, v⟩, J v being the reference's forward mode: a third witness."""
    point, reference = context.point, context.subject.reference
    assert reference is not None
    dots = tuple(normal(context.rng, x) for x in point.actives)

    def tangents(actives: Arrays, fixed: Arrays, vs: Arrays) -> Any:
        return jax.jvp(lambda *xs: reference(xs, fixed), actives, vs)[1]

    pushed = None
    with Guard("the reference in forward mode"), context.full.precision():
        actives = tuple(map(jnp.asarray, point.actives))
        found = jax.jit(tangents)(actives, point.fixed, tuple(map(jnp.asarray, dots)))
        pushed = [np.asarray(d) for d in found]
    if pushed is None:  # custom_vjp functions inside, callbacks
        context.row(ADJOINT, Outcome.LEFT_OUT, "the reference has no forward mode")
        return
    result = context.full.both(point)
    left, right = pairing(point.bars, pushed), pairing(result.claimed, dots)
    products = [np.abs(np.asarray(d) * b) for d, b in zip(dots, result.claimed)]
    scale = sum(float(np.sum(p)) for p in products) + 1e-300
    gap = abs(left - right) / scale
    limit = 1e-6 if context.iterative else max(1e-9, 1e3 * context.full.unit)
    if gap <= limit or not np.isfinite(gap):
        context.row(ADJOINT, Outcome.RIGHT, "⟨ȳ, J v⟩ = ⟨x̄, v⟩", error=gap, limit=limit)
        return
    assert result.true is not None
    if farthest(result.claimed, result.true) <= 1e-9:
        context.row(ADJOINT, Outcome.NOTE, "the reference's own forward and reverse mode differ",
                    error=gap, limit=limit)  # fmt: skip
        context.note("the reference's forward mode and its reverse mode disagree with each other")
