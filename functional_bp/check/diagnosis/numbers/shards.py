"""What only devices that share the work get wrong: a sum over them that is missing, or a mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from functional_bp import _jax
from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis
from functional_bp.check.evaluation import pull_reference
from functional_bp.check.graphs import equations

MEAN = (
    "a mean over them (lax.pmean) stands where a sum (lax.psum) belongs, or what is divided by "
    "their number already is divided again"
)
SUMMED = "it is summed over them (lax.psum) though each of them has the whole"
SHARED = "it is summed over them (lax.psum) though each of them has entries of its own"


def shard_hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """For a claim with a ``shard_map``: a factor of its devices, or one device's part alone."""
    counts = _device_counts(evidence)
    name = evidence.argument
    found: list[Hypothesis] = []

    def explained(message: str, error: float | None, cost: float) -> None:
        if error is not None:
            text = evidence.here + message
            found.append(Hypothesis("sharding", text, error, cost, len(evidence.fresh)))

    for n in counts:
        for c, claimed, why in (
            (1 / n, f"true / {n}", MEAN), (float(n), f"{n} · true", SUMMED)
        ):  # fmt: skip
            error = evidence.explains(lambda case, c=c: c * case.true)
            explained(f"claimed = {claimed} for {name}, shared by {n} devices: {why}", error, 0.4)
        for axis, length in enumerate(evidence.given.shape):
            if length % n or found:
                continue
            for c, shown in ((1.0, ""), (1 / n, f", over {n}"), (1 / n**2, f", over {n}²")):
                error = evidence.explains(
                    lambda case, c=c, i=axis, n=n: c * _over_parts(case.true, i, n)
                )
                explained(
                    f"claimed is the sum of the {n} devices' parts of the cotangent of {name} "
                    f"along axis {axis}{shown}: {SHARED}", error, 0.4,
                )  # fmt: skip
        if found or evidence.subject.reference is None:
            continue
        for device, word in ((0, "first"), (n - 1, "last")):
            for output, axis in _shared_axes(evidence, n):
                error = evidence.explains(
                    lambda case, d=device, o=output, i=axis, n=n: _part(evidence, case, o, i, d, n)
                )
                explained(
                    f"claimed is the {word} of {n} devices' part of the cotangent of {name} alone: "
                    "the sum over the devices (lax.psum) is missing", error, 0.4,
                )  # fmt: skip
    return found[:1]


def _device_counts(evidence: Evidence) -> list[int]:
    """Over how many devices the claim's ``shard_map``s split something."""
    subject, sample = evidence.subject, evidence.given.sample
    try:
        with jax.enable_x64(True):
            closed = jax.make_jaxpr(lambda a, b: subject.pull(a, sample.fixed, b)[1])(
                tuple(sample.actives), tuple(sample.bars)
            )
    except Exception:  # a claim that cannot be traced is not split
        return []
    found: dict[int, None] = {}
    for equation in equations(_jax.open_jaxpr(closed)[0]):
        if equation.primitive.name == "shard_map":
            sizes = [int(n) for n in equation.params["mesh"].shape.values()]
            found.update(dict.fromkeys(n for n in (*sizes, math.prod(sizes)) if n > 1))
    return list(found)


def _over_parts(x: np.ndarray, axis: int, n: int) -> np.ndarray:
    """In each of n parts along an axis, the sum of all of them."""
    total = sum(np.split(x, n, axis))
    return np.concatenate([total] * n, axis)


def _shared_axes(evidence: Evidence, n: int) -> Iterator[tuple[int, int]]:
    for output, bar in enumerate(evidence.given.sample.bars):
        for axis, length in enumerate(np.shape(bar)):
            if length % n == 0:
                yield output, axis


def _part(evidence: Evidence, case: Case, output: int, axis: int, device: int, n: int) -> Any:
    """The true cotangent if only one device's part of an output's cotangent were there."""
    bars = [np.asarray(bar) for bar in case.sample.bars]
    size = bars[output].shape[axis] // n
    inside = (slice(None),) * axis + (slice(device * size, (device + 1) * size),)
    kept = np.zeros_like(bars[output])
    kept[inside] = bars[output][inside]
    bars[output] = kept
    with jax.enable_x64(True):
        actives, fixed = case.sample.actives, case.sample.fixed
        true = pull_reference(evidence.subject, actives, fixed, tuple(bars))[1]
    return np.asarray(true[evidence.disagreement.argument])
