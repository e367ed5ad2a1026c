"""Stage: the claim under JAX's transformations gives what it gives without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from functional_bp.gradcheck.context import Context
from functional_bp.gradcheck.diagnosis.diagnose import lines_of
from functional_bp.gradcheck.evaluation import Point, to_numpy
from functional_bp.gradcheck.findings import Finding
from functional_bp.gradcheck.stages.shapes import place_of
from functional_bp.gradcheck.subject import Arrays, Subject, all_finite, farthest

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


def compositions(context: Context) -> None:
    """vmap over everything, over the cotangents and over each argument; scan; remat."""
    if context.quick or not context.subject.traceable or context.subject.only_here:
        return
    if context.size > FEW_ELEMENTS:
        context.row("vmap, scan, remat", "left out", "long arrays")
        return
    with context.full.precision():
        batch = jax.tree.map(jnp.asarray, _batch(context.point))
    slices = [
        Point(tuple(x[i] for x in batch.actives), batch.fixed, tuple(b[i] for b in batch.bars))
        for i in range(BATCH)
    ]
    expected = _stacked([context.full.both(point).claimed for point in slices])
    if not all_finite(expected):
        context.row("vmap, scan, remat", "left out", "not finite near the given inputs")
        return
    first = slices[0]
    made = {**_whole(context, batch), **_one_by_one(context, batch, first)}
    truths: dict[str, list[np.ndarray]] = {}
    for name in made:
        truths[name] = expected
    truths["vmap over the cotangents"] = _stacked(
        [context.full.both(first._replace(bars=point.bars)).claimed for point in slices]
    )
    for k, argument in enumerate(context.subject.names[:MOST_ARGUMENTS]):
        points = [
            first._replace(actives=(*first.actives[:k], p.actives[k], *first.actives[k + 1 :]))
            for p in slices
        ]
        truths[f"vmap over {argument}"] = _stacked([context.full.both(p).claimed for p in points])
    truths["remat"] = [np.asarray(c) for c in context.full.both(first).claimed]
    _compare(context, made, truths)


def _compare(
    context: Context, made: dict[str, Callable[[], Any]], truths: dict[str, list[np.ndarray]]
) -> None:
    """Run all compositions in one compiled function; one at a time if that raises."""
    limit = 1e-4 if context.iterative else max(TOLERANCE, 1e2 * context.full.unit)
    results: dict[str, Any] = {}
    try:
        with context.full.precision():
            every = jax.jit(lambda: {name: run() for name, run in made.items()})
            results = jax.block_until_ready(every())
    except Exception:  # which of them was it?
        for name, run in made.items():
            try:
                with context.full.precision():
                    compiled = jax.jit(run).lower().compile()
            except Exception as error:  # it says itself that it has no such rule
                if name in ("remat", "scan under grad") and (found := _left_behind(context, name)):
                    context.findings.append(found)
                    context.row(name, "wrong", f"raises {type(error).__name__}")
                    return
                context.row(name, "left out", f"raises {type(error).__name__}")
                context.note(f"{name} of the gradient raises {type(error).__name__}")
                continue
            try:
                results[name] = jax.block_until_ready(compiled())
            except Exception as error:
                _raises(context, name, error)
                return
    for name, found in results.items():
        gap = farthest(to_numpy(found), truths[name])
        wrong = gap > limit
        context.row(name, "wrong" if wrong else "right", "a loop" if name != "remat" else "without",
                  error=gap, limit=limit)  # fmt: skip
        if wrong and not context.findings:
            kind = name.split()[0]
            which = f" ({name})" if name != kind else ""
            context.findings.append(
                Finding(kind, f"{SAYS[kind]} (relative {gap:.1e}){which}", stage=name)
            )


def _raises(context: Context, name: str, error: Exception) -> None:
    """A transformation that can be traced and compiled but fails when it runs."""
    kind = name.split()[0]
    context.row(name, "wrong", f"raises {type(error).__name__}")
    if (found := _left_behind(context, name)) is not None:
        context.findings.append(found)
        return
    last = (str(error).strip() or "no message").splitlines()[-1]
    message = f"{name} of the gradient compiles, but raises {type(error).__name__}: {last}"
    context.findings.append(Finding(kind, message[:300], where=place_of(error), stage=name))


def _left_behind(context: Context, name: str) -> Finding | None:
    """What to say where the backward pass needs more of the forward pass than its residuals.

    The forward pass is run under jit, so that all it leaves elsewhere is out of date, and the
    backward pass then on the residuals alone.
    """
    subject, point = context.subject, context.point
    kept, backward = subject.residuals, subject.backward
    if kept is None or backward is None:
        return None
    try:
        with context.full.precision():
            actives = tuple(map(jnp.asarray, point.actives))
            residuals = jax.jit(lambda xs: kept(xs, point.fixed))(actives)
    except Exception:  # the forward pass cannot be run by itself
        return None
    try:
        with context.full.precision():
            backward(residuals, point.fixed, tuple(map(jnp.asarray, point.bars)))
    except LOST as error:
        kind = name.split()[0]
        message = SEPARATE.format(where=WHERE[kind])
        also = tuple(other for other in ("scan", "remat") if other != kind)
        return Finding(kind, message, where=place_of(error), stage=name, also=also)
    except Exception:  # it counts on more than its arguments in another way
        return None
    return None


def _whole(context: Context, batch: Point) -> dict[str, Callable[[], Any]]:
    """Transformations over whole batches."""
    subject = context.subject
    pull = lambda actives, bars: subject.pull(actives, batch.fixed, bars)[1]

    def scan() -> Any:
        step = lambda carry, slice_: (carry, pull(*slice_))
        return jax.lax.scan(step, 0, (batch.actives, batch.bars))[1]

    made = {"vmap": lambda: jax.vmap(pull)(batch.actives, batch.bars), "scan": scan}
    if subject.by_transform:
        made["scan under grad"] = lambda: _scan_under_grad(subject, batch)
    return made


def _scan_under_grad(subject: Subject, batch: Point) -> Any:
    """The function in a scan, and that differentiated: its two passes are traced apart."""

    def scanned(*actives: Any) -> Any:
        step = lambda carry, slice_: (carry, subject.value(slice_, batch.fixed))
        return jax.lax.scan(step, 0, actives)[1]

    outs, pullback = jax.vjp(scanned, *batch.actives)
    return pullback(tuple(jnp.asarray(b, o.dtype) for b, o in zip(batch.bars, outs)))


def _one_by_one(context: Context, batch: Point, first: Point) -> dict[str, Callable[[], Any]]:
    subject = context.subject
    pull = lambda actives, bars: subject.pull(actives, batch.fixed, bars)[1]

    def over(k: int) -> Callable[[], Any]:
        axes = tuple(0 if i == k else None for i in range(len(first.actives)))
        actives = tuple(batch.actives[i] if i == k else x for i, x in enumerate(first.actives))
        return lambda: jax.vmap(pull, in_axes=(axes, None))(actives, first.bars)

    def remat() -> Any:
        value = jax.checkpoint(lambda *xs: subject.value(xs, batch.fixed))
        _, pullback = jax.vjp(value, *first.actives)
        return pullback(tuple(jnp.asarray(b) for b in first.bars))

    made: dict[str, Callable[[], Any]] = {
        "vmap over the cotangents": lambda: jax.vmap(lambda bars: pull(first.actives, bars))(
            batch.bars
        )
    }
    if len(first.actives) > 1:
        made |= {
            f"vmap over {name}": over(k) for k, name in enumerate(subject.names[:MOST_ARGUMENTS])
        }
    if subject.by_transform:
        made["remat"] = remat
    return made


def _batch(point: Point) -> Point:
    """Arguments and cotangents at several scales, stacked along a new first axis."""
    grow = lambda x, rate: np.stack([x * (1 - rate * i) for i in range(BATCH)])
    actives = tuple(grow(np.asarray(x), 0.2) for x in point.actives)
    bars = tuple(grow(np.asarray(b), -0.2) for b in point.bars)
    return Point(actives, point.fixed, bars)


def _stacked(results: list[Arrays]) -> list[np.ndarray]:
    return [np.stack([np.asarray(r[k]) for r in results]) for k in range(len(results[0]))]


def sharded_inputs(context: Context) -> None:
    """The claim on inputs that are split over two devices along their first axis."""
    subject, point = context.subject, context.point
    if context.quick or not subject.traceable or subject.only_here:
        return
    devices = jax.devices()[:2]
    lengths = [x.shape[0] for x in point.actives if x.ndim and x.shape[0] % 2 == 0]
    if len(devices) < 2 or not lengths:
        why = "one device" if len(devices) < 2 else "no axis that two devices can share"
        context.row("sharded inputs", "left out", why)
        return
    mesh = jax.make_mesh((2,), ("d",), (AxisType.Auto,), devices=devices)
    length = max(set(lengths), key=lengths.count)

    def put(x: Any) -> Any:
        split = np.ndim(x) > 0 and np.shape(x)[0] == length
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec("d" if split else None)))

    expected = context.full.both(point).claimed
    if not all_finite(expected):
        context.row("sharded inputs", "left out", "not finite")
        return
    limit = 1e-4 if context.iterative else max(TOLERANCE, 1e2 * context.full.unit)
    pull = lambda a, b: subject.pull(a, point.fixed, b)[1]
    gap = 0.0
    for way, run in (("under jit", jax.jit(pull)), ("without jit", pull)):
        name = "sharded inputs" if way == "under jit" else f"sharded inputs, {way}"
        try:
            with context.full.precision():
                actives, bars = tuple(map(put, point.actives)), tuple(map(put, point.bars))
                found = to_numpy(run(actives, bars))
        except Exception as error:
            place = place_of(error)
            if way == "under jit" or place is None:  # it may not be made for these devices
                context.row(name, "left out", f"raises {type(error).__name__}")
                return
            context.row(name, "wrong", f"raises {type(error).__name__}")
            _shards_differ(context, name, f"raise {type(error).__name__} where under jit and on "
                           "one device they do not: ", place)  # fmt: skip
            return
        gap = farthest(found, expected)
        wrong = gap > limit
        context.row(name, "wrong" if wrong else "right", "one device", error=gap, limit=limit)
        if wrong:
            _shards_differ(context, name,
                           f"give another gradient than on one (relative {gap:.1e}), "
                           f"{way}: ", None)  # fmt: skip
            return


def _shards_differ(context: Context, name: str, what: str, place: Any) -> None:
    advice = "something looks at where the arrays are, or counts the devices"
    message = f"inputs that two devices share {what}{advice}"
    place = place or next(iter(lines_of(context.subject, "sharding")), None)
    context.findings.append(Finding("sharding", message, where=place, stage=name))
