"""Wrong gradients from hand-written pairs in JAX, whose lines a diagnosis can search."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.gradcheck.clock import TimeLimit
from functional_bp.gradcheck.diagnosis.repair.search import single_repairs
from functional_bp.gradcheck.findings import Finding, Kind
from functional_bp.gradcheck.subject import Disagreement, Sample, Subject

SECONDS = 30  # far more than needed: a search that ends early because of the clock is not the test


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def repairs(disagreement: Disagreement, limit: TimeLimit) -> list[Finding]:
    """Single edits of the claimed backward pass, else two at once."""
    found, search = single_repairs(disagreement, limit)
    return search.two(limit) if not found and search is not None else found


def disagree(
    forward: Callable[..., Any],
    fwd: Callable[..., Any],
    bwd: Callable[..., Any],
    *arguments: np.ndarray,
    apart: bool = True,
) -> Disagreement:
    """The disagreement between a hand-written pair and its forward; the first wrong argument."""
    fixed = tuple(a for a in arguments if a.dtype.kind != "f")
    actives = tuple(a for a in arguments if a.dtype.kind == "f")
    rng = np.random.default_rng(1)

    def value(actives: Any, fixed: Any) -> Any:
        return (forward(*actives, *fixed),)

    def residuals(actives: Any, fixed: Any) -> Any:
        return fwd(*actives, *fixed)[1]

    def backward(kept: Any, fixed: Any, bars: Any) -> Any:
        return tuple(bwd(kept, *bars))[: len(actives)]

    def pull(actives: Any, fixed: Any, bars: Any) -> Any:
        out, kept = fwd(*actives, *fixed)
        return (out,), backward(kept, fixed, bars)

    def sample(at: Any) -> Sample:
        outs, pullback = jax.vjp(lambda *a: value(a, fixed), *at)
        bars = tuple(rng.normal(size=out.shape) for out in outs)
        true = pullback(tuple(map(jnp.asarray, bars)))
        claimed = pull(at, fixed, bars)[1]
        arrays = (tuple(map(np.asarray, held)) for held in (outs, claimed, true))
        outs, claimed, true = arrays
        return Sample(at, fixed, bars, outs, claimed, true)

    given = sample(actives)
    masks = [~np.isclose(a, b, 1e-9, 1e-12) for a, b in zip(given.claimed, given.true)]
    subject = Subject(
        "planted", tuple(inspect.signature(forward).parameters)[: len(actives)], actives, fixed,
        value, pull, value, residuals=residuals if apart else None,
        backward=backward if apart else None, source=bwd,
    )  # fmt: skip
    return Disagreement(
        subject,
        next(i for i, mask in enumerate(masks) if mask.any()),
        given,
        masks,
        lambda: sample(tuple(a + 0.3 * rng.normal(size=a.shape) for a in actives)),
    )


def line_with(function: Callable[..., Any], mark: str) -> int:
    """The line of a function that carries a comment."""
    lines, start = inspect.getsourcelines(function)
    return next(start + i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {mark}"))


def best(disagreement: Disagreement) -> Finding:
    found = repairs(disagreement, TimeLimit(SECONDS))
    assert found, "no repair found"
    assert all(one.kind in set(Kind) for one in found) and len(found) <= 3
    return found[0]
