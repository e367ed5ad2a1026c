"""Wrong gradients by hand, from NumPy functions: what a diagnosis is tried on."""

from collections.abc import Callable
from typing import Any

import numpy as np

from functional_bp.gradcheck.clock import TimeLimit
from functional_bp.gradcheck.diagnosis.diagnose import find_patterns
from functional_bp.gradcheck.diagnosis.patterns.evidence import wrong_entries
from functional_bp.gradcheck.findings import Kind
from functional_bp.gradcheck.subject import Disagreement, Sample, Subject

Pullback = Callable[..., tuple[Any, ...]]
SECONDS = 5.0  # a generous deadline; what is found does not depend on it


def normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], tuple[np.ndarray, ...]]:
    """Draws arrays of the given shapes."""
    return lambda rng: tuple(rng.standard_normal(shape) for shape in shapes)


def planted(
    names: str,
    draw: Callable[[np.random.Generator], tuple[np.ndarray, ...]],
    value: Callable[..., Any],
    right: Pullback,
    wrong: Pullback,
    *,
    argument: int = 0,
    residuals: Callable[..., dict[str, np.ndarray]] | None = None,
    fixed: Callable[[np.random.Generator], dict[str, np.ndarray]] = lambda rng: {},
    seed: int = 0,
) -> Disagreement:
    """A disagreement of two pullbacks ``(*actives, *fixed, *bars) -> cotangents``."""
    rng = np.random.default_rng(seed)

    def outs(actives: Any, fixed: Any) -> tuple[np.ndarray, ...]:
        result = value(*actives, *fixed)
        return result if isinstance(result, tuple) else (result,)

    def arrays(some: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(a) for a in some)

    def sample() -> Sample:
        actives, others = draw(rng), tuple(fixed(rng).values())
        ys = arrays(outs(actives, others))
        bars = tuple(np.asarray(rng.standard_normal(y.shape)) for y in ys)
        if np.iscomplexobj(ys[0]):
            bars = tuple(bar + 1j * rng.standard_normal(bar.shape) for bar in bars)
        with np.errstate(all="ignore"):
            claimed, true = wrong(*actives, *others, *bars), right(*actives, *others, *bars)
        return Sample(actives, others, bars, ys, arrays(claimed), arrays(true))

    subject = Subject(
        name="planted",
        names=tuple(names.split()),
        actives=draw(np.random.default_rng(1)),
        fixed=(),
        value=outs,
        pull=lambda actives, fixed, bars: (outs(actives, fixed), wrong(*actives, *fixed, *bars)),
        residuals=None if residuals is None else lambda a, f: residuals(*a, *f),
        fixed_names=tuple(fixed(np.random.default_rng(1))),
    )
    given = sample()
    masks = [wrong_entries(claimed, true) for claimed, true in zip(given.claimed, given.true)]
    kept = {} if residuals is None else residuals(*given.actives, *given.fixed)
    return Disagreement(subject, argument, given, masks, sample, kept)


def best(disagreement: Disagreement) -> Any:
    found = find_patterns(disagreement, TimeLimit(SECONDS))
    assert all(h.kind in set(Kind) for h in found)
    for h in found:
        print(h.kind, "|", h.message, "|", h.unexplained, h.cost)
    return found[0] if found else None


def elementwise(wrong: Pullback, **options: Any) -> Disagreement:
    """y = tanh(x), whose cotangent is ȳ (1 − y²)."""
    return planted(
        "x",
        normal((4, 6)),
        np.tanh,
        lambda x, y_bar: (y_bar * (1 - np.tanh(x) ** 2),),
        wrong,
        **options,
    )


def tanh_bar(x: np.ndarray, y_bar: np.ndarray) -> np.ndarray:
    return y_bar * (1 - np.tanh(x) ** 2)
