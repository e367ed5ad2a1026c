"""Stage: the claim under JAX's transformations gives what it gives without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from functional_bp.gradcheck.context import Trial
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


def compositions(trial: Trial) -> None:
    """vmap over everything, over the cotangents and over each argument; scan; remat."""
    if trial.quick or not trial.subject.traceable or trial.subject.only_here:
        return
    if trial.size > FEW_ELEMENTS:
        trial.row("vmap, scan, remat", "left out", "long arrays")
        return
    with trial.full.precision():
        batch = jax.tree.map(jnp.asarray, _batch(trial.point))
    slices = [
        Point(tuple(x[i] for x in batch.actives), batch.fixed, tuple(b[i] for b in batch.bars))
        for i in range(BATCH)
    ]
    expected = _stacked([trial.full.both(point).claimed for point in slices])
    if not all_finite(expected):
        trial.row("vmap, scan, remat", "left out", "not finite near the given inputs")
        return
    first = slices[0]
    made = {**_whole(trial, batch), **_one_by_one(trial, batch, first)}
    truths: dict[str, list[np.ndarray]] = {}
    for name in made:
        truths[name] = expected
    truths["vmap over the cotangents"] = _stacked(
        [trial.full.both(first._replace(bars=point.bars)).claimed for point in slices]
    )
    for k, argument in enumerate(trial.subject.names[:MOST_ARGUMENTS]):
        points = [
            first._replace(actives=(*first.actives[:k], p.actives[k], *first.actives[k + 1 :]))
            for p in slices
        ]
        truths[f"vmap over {argument}"] = _stacked([trial.full.both(p).claimed for p in points])
    truths["remat"] = [np.asarray(c) for c in trial.full.both(first).claimed]
    _compare(trial, made, truths)


def _compare(
    trial: Trial, made: dict[str, Callable[[], Any]], truths: dict[str, list[np.ndarray]]
) -> None:
    """Run all compositions in one compiled function; one at a time if that raises."""
    limit = 1e-4 if trial.iterative else max(TOLERANCE, 1e2 * trial.full.unit)
    results: dict[str, Any] = {}
    try:
        with trial.full.precision():
            every = jax.jit(lambda: {name: run() for name, run in made.items()})
            results = jax.block_until_ready(every())
    except Exception:  # which of them was it?
        for name, run in made.items():
            try:
                with trial.full.precision():
                    compiled = jax.jit(run).lower().compile()
            except Exception as error:  # it says itself that it has no such rule
                if name in ("remat", "scan under grad") and (found := _left_behind(trial, name)):
                    trial.findings.append(found)
                    trial.row(name, "wrong", f"raises {type(error).__name__}")
                    return
                trial.row(name, "left out", f"raises {type(error).__name__}")
                trial.note(f"{name} of the gradient raises {type(error).__name__}")
                continue
            try:
                results[name] = jax.block_until_ready(compiled())
            except Exception as error:
                _raises(trial, name, error)
                return
    for name, found in results.items():
        gap = farthest(to_numpy(found), truths[name])
        wrong = gap > limit
        trial.row(name, "wrong" if wrong else "right", "a loop" if name != "remat" else "without",
                  error=gap, limit=limit)  # fmt: skip
        if wrong and not trial.findings:
            kind = name.split()[0]
            which = f" ({name})" if name != kind else ""
            trial.findings.append(
                Finding(kind, f"{SAYS[kind]} (relative {gap:.1e}){which}", stage=name)
            )


def _raises(trial: Trial, name: str, error: Exception) -> None:
    """A transformation that can be traced and compiled but fails when it runs."""
    kind = name.split()[0]
    trial.row(name, "wrong", f"raises {type(error).__name__}")
    if (found := _left_behind(trial, name)) is not None:
        trial.findings.append(found)
        return
    last = (str(error).strip() or "no message").splitlines()[-1]
    message = f"{name} of the gradient compiles, but raises {type(error).__name__}: {last}"
    trial.findings.append(Finding(kind, message[:300], where=place_of(error), stage=name))


def _left_behind(trial: Trial, name: str) -> Finding | None:
    """What to say where the backward pass needs more of the forward pass than its residuals.

    The forward pass is run under jit, so that all it leaves elsewhere is out of date, and the
    backward pass then on the residuals alone.
    """
    subject, point = trial.subject, trial.point
    kept, backward = subject.residuals, subject.backward
    if kept is None or backward is None:
        return None
    try:
        with trial.full.precision():
            actives = tuple(map(jnp.asarray, point.actives))
            residuals = jax.jit(lambda xs: kept(xs, point.fixed))(actives)
    except Exception:  # the forward pass cannot be run by itself
        return None
    try:
        with trial.full.precision():
            backward(residuals, point.fixed, tuple(map(jnp.asarray, point.bars)))
    except LOST as error:
        kind = name.split()[0]
        message = SEPARATE.format(where=WHERE[kind])
        also = tuple(other for other in ("scan", "remat") if other != kind)
        return Finding(kind, message, where=place_of(error), stage=name, also=also)
    except Exception:  # it counts on more than its arguments in another way
        return None
    return None


def _whole(trial: Trial, batch: Point) -> dict[str, Callable[[], Any]]:
    """Transformations over whole batches."""
    subject = trial.subject
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


def _one_by_one(trial: Trial, batch: Point, first: Point) -> dict[str, Callable[[], Any]]:
    subject = trial.subject
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


def sharded_inputs(trial: Trial) -> None:
    """The claim on inputs that are split over two devices along their first axis."""
    subject, point = trial.subject, trial.point
    if trial.quick or not subject.traceable or subject.only_here:
        return
    devices = jax.devices()[:2]
    lengths = [x.shape[0] for x in point.actives if x.ndim and x.shape[0] % 2 == 0]
    if len(devices) < 2 or not lengths:
        why = "one device" if len(devices) < 2 else "no axis that two devices can share"
        trial.row("sharded inputs", "left out", why)
        return
    mesh = jax.make_mesh((2,), ("d",), (AxisType.Auto,), devices=devices)
    length = max(set(lengths), key=lengths.count)

    def put(x: Any) -> Any:
        split = np.ndim(x) > 0 and np.shape(x)[0] == length
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec("d" if split else None)))

    expected = trial.full.both(point).claimed
    if not all_finite(expected):
        trial.row("sharded inputs", "left out", "not finite")
        return
    limit = 1e-4 if trial.iterative else max(TOLERANCE, 1e2 * trial.full.unit)
    pull = lambda a, b: subject.pull(a, point.fixed, b)[1]
    gap = 0.0
    for way, run in (("under jit", jax.jit(pull)), ("without jit", pull)):
        name = "sharded inputs" if way == "under jit" else f"sharded inputs, {way}"
        try:
            with trial.full.precision():
                actives, bars = tuple(map(put, point.actives)), tuple(map(put, point.bars))
                found = to_numpy(run(actives, bars))
        except Exception as error:
            place = place_of(error)
            if way == "under jit" or place is None:  # it may not be made for these devices
                trial.row(name, "left out", f"raises {type(error).__name__}")
                return
            trial.row(name, "wrong", f"raises {type(error).__name__}")
            _shards_differ(trial, name, f"raise {type(error).__name__} where under jit and on "
                           "one device they do not: ", place)  # fmt: skip
            return
        gap = farthest(found, expected)
        wrong = gap > limit
        trial.row(name, "wrong" if wrong else "right", "one device", error=gap, limit=limit)
        if wrong:
            _shards_differ(trial, name, f"give another gradient than on one (relative {gap:.1e}), "
                           f"{way}: ", None)  # fmt: skip
            return


def _shards_differ(trial: Trial, name: str, what: str, place: Any) -> None:
    advice = "something looks at where the arrays are, or counts the devices"
    message = f"inputs that two devices share {what}{advice}"
    place = place or next(iter(lines_of(trial.subject, "sharding")), None)
    trial.findings.append(Finding("sharding", message, where=place, stage=name))
