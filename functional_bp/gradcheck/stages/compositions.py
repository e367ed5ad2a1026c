"""Under JAX's transformations the claim has to give what it gives without them.

Batched, scanned, recomputed, sharded; and differentiated once more. The adjoint identity compares
with the reference's forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from functional_bp.gradcheck.context import CheckContext
from functional_bp.gradcheck.diagnosis.localize import lines_of
from functional_bp.gradcheck.evaluation import Point, pull_reference, slope, to_numpy
from functional_bp.gradcheck.findings import Finding, Kind, Outcome, Place
from functional_bp.gradcheck.guard import Guard, place_of
from functional_bp.gradcheck.judging import any_of, exceeding
from functional_bp.gradcheck.subject import (
    Arrays,
    Subject,
    all_finite,
    farthest,
    normal,
    nudged,
    pairing,
)

BATCH = 3
TOLERANCE = 1e-6  # relative; the same operations, in another order at most
FEW_ELEMENTS = 20_000
MOST_ARGUMENTS = 4  # batched one at a time

SAYS = {
    "vmap": "vmap changes the gradient: something in the backward pass counts on the shape or "
    "the axes that it has without a batch",
    "scan": "inside a scan the gradient is another than outside",
    "remat": "under jax.checkpoint the gradient is another: running the forward pass again gives "
    "other residuals",
}
WHERE = {
    "scan": "in a scan that is differentiated",
    "remat": "under jax.checkpoint (remat)",
    "vmap": "under vmap",
}
SEPARATE = (
    "the backward pass uses a value that the forward pass left in a Python variable or in a "
    "closure; {where} the two passes run apart and that value is gone: return it among the "
    "residuals"
)
LOST = (jax.errors.UnexpectedTracerError, KeyError, IndexError, AttributeError, NameError)


class Composition(NamedTuple):
    """A composition is the claim under one transformation, and what it has to give.

    Attributes:
        label: its row's name in the report.
        kind: of the finding where it gives something else.
        run: computes the cotangents.
        expected: the cotangents without the transformation.
        against: where these come from, in words.
        runs_apart: whether it traces the forward and the backward pass apart.
    """

    label: str
    kind: Kind
    run: Callable[[], Any]
    expected: Sequence[np.ndarray]
    against: str = "a loop"
    runs_apart: bool = False


def compositions(context: CheckContext) -> None:
    """Compare under vmap over everything, over the cotangents, over each argument; scan; remat."""
    if context.size > FEW_ELEMENTS:
        context.row("vmap, scan, remat", Outcome.LEFT_OUT, "long arrays")
        return
    with context.full.precision():
        batch = jax.tree.map(jnp.asarray, _batch(context.point))
    slices = [
        Point(tuple(x[i] for x in batch.actives), batch.fixed, tuple(b[i] for b in batch.bars))
        for i in range(BATCH)
    ]
    expected = _stacked(context, slices)
    if not all_finite(expected):
        context.row("vmap, scan, remat", Outcome.LEFT_OUT, "not finite near the given inputs")
        return
    made = _compositions(context, batch, slices, expected)
    results = _run_all(context, made)
    if results is None:
        return
    limit = _limit(context)
    every = {composition.label: composition for composition in made}
    for label, found in results.items():
        composition = every[label]
        gap = farthest(to_numpy(found), composition.expected)
        wrong = gap > limit
        context.row(label, Outcome.WRONG if wrong else Outcome.RIGHT, composition.against,
                    error=gap, limit=limit)  # fmt: skip
        if wrong and not context.findings:
            kind = composition.kind
            which = f" ({label})" if label != kind else ""
            message = f"{SAYS[kind]} (relative {gap:.1e}){which}"
            context.findings.append(Finding(kind, message, stage=label))


def _compositions(
    context: CheckContext, batch: Point, slices: Sequence[Point], expected: Sequence[np.ndarray]
) -> list[Composition]:
    subject, first = context.subject, slices[0]
    pull = lambda actives, bars: subject.pull(actives, batch.fixed, bars)[1]

    def scan() -> Any:
        step = lambda carry, slice_: (carry, pull(*slice_))
        return jax.lax.scan(step, 0, (batch.actives, batch.bars))[1]

    def over(k: int) -> Callable[[], Any]:
        axes = tuple(0 if i == k else None for i in range(len(first.actives)))
        actives = first.with_active(k, batch.actives[k]).actives
        return lambda: jax.vmap(pull, in_axes=(axes, None))(actives, first.bars)

    def remat() -> Any:
        value = jax.checkpoint(lambda *xs: subject.value(xs, batch.fixed))
        _, pullback = jax.vjp(value, *first.actives)
        return pullback(tuple(jnp.asarray(b) for b in first.bars))

    vmap = lambda: jax.vmap(pull)(batch.actives, batch.bars)
    made = [
        Composition("vmap", Kind.VMAP, vmap, expected),
        Composition("scan", Kind.SCAN, scan, expected),
    ]
    if subject.by_transform:
        scanned = lambda: _scan_under_grad(subject, batch)
        made.append(Composition("scan under grad", Kind.SCAN, scanned, expected, runs_apart=True))
    points = [first._replace(bars=point.bars) for point in slices]
    over_bars = lambda: jax.vmap(lambda bars: pull(first.actives, bars))(batch.bars)
    made.append(
        Composition("vmap over the cotangents", Kind.VMAP, over_bars, _stacked(context, points))
    )
    for k, name in enumerate(subject.names[:MOST_ARGUMENTS] if len(first.actives) > 1 else ()):
        points = [first.with_active(k, point.actives[k]) for point in slices]
        label, true = f"vmap over {name}", _stacked(context, points)
        made.append(Composition(label, Kind.VMAP, over(k), true))
    if subject.by_transform:
        alone = [np.asarray(c) for c in context.full.both(first).claimed]
        made.append(Composition("remat", Kind.REMAT, remat, alone, "without", runs_apart=True))
    return made


def _run_all(context: CheckContext, made: Sequence[Composition]) -> dict[str, Any] | None:
    """The results by label: of one compiled function, and one at a time where that raises.

    None where one raises that the claim is to blame for, which is then told.
    """
    with Guard("all transformations at once"), context.full.precision():
        every = jax.jit(lambda: {composition.label: composition.run() for composition in made})
        return jax.block_until_ready(every())
    results: dict[str, Any] = {}
    for composition in made:
        label, compiled = composition.label, None
        with Guard(f"{label}, compiled") as ran, context.full.precision():
            compiled = jax.jit(composition.run).lower().compile()
        if compiled is None:  # it says itself that it has no such rule
            raised = f"raises {ran.raised}"
            found = _left_behind(context, composition) if composition.runs_apart else None
            if found is not None:
                context.wrong(found, label, raised)
                return None
            context.row(label, Outcome.LEFT_OUT, raised)
            context.note(f"{label} of the gradient {raised}")
            continue
        with Guard(label) as ran:
            results[label] = jax.block_until_ready(compiled())
        if ran.error is not None:
            _raises(context, composition, ran.error)
            return None
    return results


def _raises(context: CheckContext, composition: Composition, error: Exception) -> None:
    """A transformation that can be traced and compiled but fails when it runs."""
    label, raised = composition.label, f"raises {type(error).__name__}"
    found = _left_behind(context, composition)
    if found is None:
        last = (str(error).strip() or "no message").splitlines()[-1]
        message = f"{label} of the gradient compiles, but {raised}: {last}"
        found = Finding(composition.kind, message[:300], where=place_of(error), stage=label)
    context.wrong(found, label, raised)


def _left_behind(context: CheckContext, composition: Composition) -> Finding | None:
    """What to say where the backward pass needs more of the forward pass than its residuals.

    The forward pass is run under jit, so that all it leaves elsewhere is out of date, and the
    backward pass then on the residuals alone.
    """
    subject, point, kind = context.subject, context.point, composition.kind
    kept, backward = subject.residuals, subject.backward
    if kept is None or backward is None:
        return None
    with Guard("the two passes apart"), context.full.precision():
        actives = tuple(map(jnp.asarray, point.actives))
        residuals = jax.jit(lambda xs: kept(xs, point.fixed))(actives)
        try:
            backward(residuals, point.fixed, tuple(map(jnp.asarray, point.bars)))
        except LOST as error:
            also = tuple(other for other in ("scan", "remat") if other != kind)
            return Finding(kind, SEPARATE.format(where=WHERE[kind]), where=place_of(error),
                           stage=composition.label, also=also)  # fmt: skip
    return None


def _scan_under_grad(subject: Subject, batch: Point) -> Any:
    """The function in a scan, and that differentiated: its two passes are traced apart."""

    def scanned(*actives: Any) -> Any:
        step = lambda carry, slice_: (carry, subject.value(slice_, batch.fixed))
        return jax.lax.scan(step, 0, actives)[1]

    outs, pullback = jax.vjp(scanned, *batch.actives)
    return pullback(tuple(jnp.asarray(b, o.dtype) for b, o in zip(batch.bars, outs)))


def _batch(point: Point) -> Point:
    """Arguments and cotangents at several scales, stacked along a new first axis."""
    grow = lambda x, rate: np.stack([x * (1 - rate * i) for i in range(BATCH)])
    actives = tuple(grow(np.asarray(x), 0.2) for x in point.actives)
    bars = tuple(grow(np.asarray(b), -0.2) for b in point.bars)
    return Point(actives, point.fixed, bars)


def _stacked(context: CheckContext, points: Iterable[Point]) -> list[np.ndarray]:
    """The claimed cotangents at several points, those of each argument stacked."""
    found: list[Arrays] = [context.full.both(point).claimed for point in points]
    return [np.stack([np.asarray(bar) for bar in bars]) for bars in zip(*found)]


def _limit(context: CheckContext) -> float:
    return 1e-4 if context.iterative else max(TOLERANCE, 1e2 * context.full.unit)


def sharded_inputs(context: CheckContext) -> None:
    """Compare on inputs that are split over two devices along their first axis."""
    subject, point, label = context.subject, context.point, "sharded inputs"
    devices = jax.devices()[:2]
    lengths = [x.shape[0] for x in point.actives if x.ndim and x.shape[0] % 2 == 0]
    if len(devices) < 2 or not lengths:
        why = "one device" if len(devices) < 2 else "no axis that two devices can share"
        context.row(label, Outcome.LEFT_OUT, why)
        return
    mesh = jax.make_mesh((2,), ("d",), (AxisType.Auto,), devices=devices)
    length = max(set(lengths), key=lengths.count)

    def put(x: Any) -> Any:
        split = np.ndim(x) > 0 and np.shape(x)[0] == length
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec("d" if split else None)))

    expected = context.full.both(point).claimed
    if not all_finite(expected):
        context.row(label, Outcome.LEFT_OUT, "not finite")
        return
    limit = _limit(context)
    eager = lambda a, b: subject.pull(a, point.fixed, b)[1]
    for run, under_jit in ((jax.jit(eager), True), (eager, False)):
        way = "under jit" if under_jit else "without jit"
        label = label if under_jit else f"{label}, {way}"
        found = None
        with Guard(f"inputs on two devices, {way}") as ran, context.full.precision():
            actives, bars = tuple(map(put, point.actives)), tuple(map(put, point.bars))
            found = to_numpy(run(actives, bars))
        if found is None:
            place, raised = ran.place, ran.raised
            if under_jit or place is None:  # it may not be made for these devices
                context.row(label, Outcome.LEFT_OUT, f"raises {raised}")
                return
            what = f"raise {raised} where under jit and on one device they do not: "
            context.wrong(_shards_differ(context, label, what, place), label, f"raises {raised}")
            return
        gap = farthest(found, expected)
        if gap > limit:
            what = f"give another gradient than on one (relative {gap:.1e}), {way}: "
            context.wrong(_shards_differ(context, label, what), label, "one device",
                          error=gap, limit=limit)  # fmt: skip
            return
        context.row(label, Outcome.RIGHT, "one device", error=gap, limit=limit)


def _shards_differ(
    context: CheckContext, label: str, what: str, place: Place | None = None
) -> Finding:
    advice = "something looks at where the arrays are, or counts the devices"
    place = place or next(iter(lines_of(context.subject, Kind.SHARDING)), None)
    message = f"inputs that two devices share {what}{advice}"
    return Finding(Kind.SHARDING, message, where=place, stage=label)


# Second order, and forward mode

NOISE = 16  # a second derivative moves more than a first by as much
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
