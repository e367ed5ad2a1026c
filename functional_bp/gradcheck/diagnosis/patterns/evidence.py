"""An explanation has to stand up to the given sample and to fresh ones, which are gathered here.

Each sample names the arrays that a formula may use: arguments, residuals, outputs. A fault leaves a
gap of its own size; where a prediction leaves almost nothing of it, in any case, it explains it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from functional_bp._jax import open_jaxpr
from functional_bp.gradcheck.clock import TimeLimit
from functional_bp.gradcheck.diagnosis.expressions import Expr
from functional_bp.gradcheck.diagnosis.localize import thresholds_in_code
from functional_bp.gradcheck.findings import Finding, Kind
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Disagreement, Sample, Subject
from functional_bp.graph.interpret import equations

LARGE = 100_000  # entries of the argument, above which nothing is regressed
# A fault leaves a gap of its own size. It counts as explained where less than a millionth of it
# remains: a constant that was rounded to float32 (6e-8) passes, a chance match does not.
OF_THE_GAP = 1e-6
# Entries far below the largest gap are dominated by what the large ones cancel to.
OF_THE_LARGEST_GAP = 1e-8
# Rounding of float64 (2e-16) through some thousand operations.
OF_THE_MAGNITUDE = 1e-12


@dataclass(frozen=True)
class Judged:
    """A sample is seen here from the argument that is judged.

    Attributes:
        sample: all of it.
        claimed, true: the argument's cotangent; 0 where the true one is not finite.
        wrong: the entries that are wrong.
        known: the floating-point arrays a formula may name: arguments, residuals, outputs.
        bars: the outputs' cotangents by name.
        discrete: the integer and boolean arrays by name.
    """

    sample: Sample
    claimed: np.ndarray
    true: np.ndarray
    wrong: np.ndarray
    known: Mapping[str, np.ndarray]
    bars: Mapping[str, np.ndarray]
    discrete: Mapping[str, np.ndarray]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a formula may be evaluated on, by name."""
        return {**self.known, **self.bars}

    @property
    def shape(self) -> tuple[int, ...]:
        """The argument's shape."""
        return self.true.shape

    @property
    def finite(self) -> bool:
        """Whether the claim is finite wherever the truth is."""
        return bool(np.all(np.isfinite(self.claimed)))


@dataclass(frozen=True)
class Evidence:
    """A finding has to explain all of these cases.

    Attributes:
        disagreement: what is to be explained.
        given: the case on which the claim was found wrong.
        fresh: further cases of the same class of inputs; empty where none can be drawn.
        limit: when to stop.
        kept: the known arrays that are residuals, under whatever name.
    """

    disagreement: Disagreement
    given: Judged
    fresh: tuple[Judged, ...]
    limit: TimeLimit
    kept: frozenset[str] = frozenset()

    @property
    def subject(self) -> Subject:
        """What is checked."""
        return self.disagreement.subject

    @property
    def argument(self) -> str:
        """The judged argument's name."""
        return self.subject.names[self.disagreement.argument]

    @property
    def rounding(self) -> float:
        """How far the claim may be off because it was written down with few digits."""
        given = self.subject.rounding
        return given[self.disagreement.argument] if given else 0.0

    @cached_property
    def cases(self) -> tuple[Judged, ...]:
        """All cases, the given one first."""
        return (self.given, *self.fresh)

    @cached_property
    def sizes(self) -> dict[int, str]:
        """A mean or a scale may have been taken over these numbers of elements; and of what."""
        found: dict[int, str] = {}
        case = self.given
        arrays = {self.argument: case.true, **case.bars, **case.known, **case.discrete}
        for name, array in arrays.items():
            for axis, n in enumerate(array.shape):
                found.setdefault(n, f"the size of axis {axis} of {name}")
        for name, array in arrays.items():
            found.setdefault(array.size, f"the number of elements of {name}")
            for a, b in itertools.combinations(range(array.ndim), 2):
                n = array.shape[a] * array.shape[b]
                found.setdefault(n, f"the size of axes {a} and {b} of {name}")
        return {n: what for n, what in found.items() if n > 1}

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """The numbers that the claim compares with."""
        return thresholds_in_code(self.subject)

    @cached_property
    def pull(self) -> Callable[..., Any]:
        """The claim's cotangents; compiled where JAX would compile a loop anew at each call."""
        subject, sample = self.subject, self.given.sample

        def pull(actives: Any, fixed: Any, bars: Any) -> Any:
            return subject.pull(actives, fixed, bars)[1]

        if not subject.traceable or any(not hasattr(x, "dtype") for x in sample.fixed):
            return pull
        with Guard("a trace of the claim, which may run on numbers alone"):
            graph = jax.make_jaxpr(pull)(sample.actives, sample.fixed, sample.bars)
            primitives = {e.primitive.name for e in equations(open_jaxpr(graph)[0])}
            return jax.jit(pull) if primitives & {"scan", "while", "shard_map"} else pull
        return pull

    @property
    def large(self) -> bool:
        """Whether the argument is too large for regressions."""
        return self.given.true.size > LARGE

    @property
    def late(self) -> bool:
        """Whether time is up."""
        return self.limit.is_reached

    @property
    def here(self) -> str:
        """How a statement that fresh samples do not bear out has to begin."""
        known = len(self.fresh) >= 2 or self.subject.only_here
        return "" if known else "on the given inputs, "

    def finding(
        self,
        kind: Kind,
        message: str,
        cost: float,
        error: float = math.nan,
        added: tuple[tuple[bool, Expr], ...] = (),
    ) -> Finding:
        """A finding has been verified on all cases; ``error`` is what it leaves unexplained."""
        return Finding(
            kind, self.here + message, cost=cost, unexplained=error, added=added,
            fresh_samples=len(self.fresh),
        )  # fmt: skip

    def explains(self, predict: Callable[[Judged], np.ndarray | None]) -> float | None:
        """This part is left, over the cases at its largest; None where a case is unexplained."""
        worst = 0.0
        for case in self.cases:
            with np.errstate(all="ignore"):
                predicted = predict(case)
            error = None
            if predicted is not None:
                error = unexplained(predicted, case.claimed, case.true, self.rounding)
            if error is None:
                return None
            worst = max(worst, error)
        return worst


def tolerance(claimed: np.ndarray, true: np.ndarray) -> np.ndarray:
    """A prediction of ``claimed`` may be off by this much, per entry."""
    gap = np.abs(claimed - true)
    magnitude = max(np.abs(claimed).max(initial=0.0), np.abs(true).max(initial=0.0))
    largest = gap.max(initial=0.0)
    return OF_THE_GAP * gap + OF_THE_LARGEST_GAP * largest + OF_THE_MAGNITUDE * magnitude


def unexplained(
    predicted: np.ndarray, claimed: np.ndarray, true: np.ndarray, rounding: float = 0.0
) -> float | None:
    """This part is left: ‖predicted − claimed‖ / ‖true − claimed‖; None if an entry is not
    explained.

    ``rounding`` is how far each entry may be off because it was written down with few digits.
    """
    if predicted.shape != claimed.shape:
        return None
    with np.errstate(all="ignore"):
        off = np.maximum(np.abs(predicted - claimed) - 1.001 * rounding, 0.0)
        if not np.all(off <= tolerance(claimed, true)):
            return None
    gap = float(np.linalg.norm(claimed - true))
    return float(np.linalg.norm(off)) / gap if gap else 0.0


# How the samples are drawn.

FRESH = 3  # two that verify, and one that may not be usable
FEW, FRESH_OF_FEW = 4, 9  # a scalar argument tells only one number per sample


def gather(disagreement: Disagreement, limit: TimeLimit) -> Evidence:
    """The given case comes with as many fresh ones as are wanted, or as there is time for."""
    places = _places_of_residuals(disagreement)
    mask = np.asarray(disagreement.masks[disagreement.argument], bool)
    given = _case(disagreement, disagreement.given, disagreement.residuals, mask)
    fresh: list[Judged] = []
    count = FRESH - 1 if mask.size > LARGE else FRESH if mask.size >= FEW else FRESH_OF_FEW
    for _ in range(count):
        if limit.is_reached:
            break
        with Guard("the claim on fresh inputs"):
            sample = disagreement.fresh()
            residuals = _residuals(disagreement.subject, sample, places)
            case = _case(disagreement, sample, residuals)
            # A claim that is finite on the given inputs and not here is another fault.
            if case.shape == given.shape and (case.finite or not given.finite):
                fresh.append(case)
    names = _distinct([given, *fresh])
    cases = [replace(c, known={name: c.known[name] for name in names}) for c in (given, *fresh)]
    kept = frozenset(
        name
        for name in names
        if any(np.array_equal(given.known[name], r) for r in disagreement.residuals.values())
    )
    return Evidence(disagreement, cases[0], tuple(cases[1:]), limit, kept)


def wrong_entries(claimed: np.ndarray, true: np.ndarray) -> np.ndarray:
    """These entries are off by more than a millionth of their own and 1e-10 of the largest."""
    scale = np.abs(true).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        return ~(np.abs(claimed - true) <= 1e-6 * np.abs(true) + 1e-10 * scale)


def _case(
    disagreement: Disagreement,
    sample: Sample,
    residuals: Mapping[str, np.ndarray],
    mask: np.ndarray | None = None,
) -> Judged:
    subject, position = disagreement.subject, disagreement.argument
    claimed, true = np.asarray(sample.claimed[position]), np.asarray(sample.true[position])
    finite = np.isfinite(true)
    claimed, true = np.where(finite, claimed, 0), np.where(finite, true, 0)
    if mask is None or mask.shape != true.shape:
        mask = wrong_entries(claimed, true)
    actives = dict(zip(subject.names, map(np.asarray, sample.actives)))
    fixed_names = subject.fixed_names or tuple(f"fixed[{i}]" for i in range(len(sample.fixed)))
    out = "out" if "y" in actives else "y"
    plain = {k: v for k, v in residuals.items() if k.isidentifier()}
    other = {k: v for k, v in residuals.items() if k not in plain}
    named: dict[str, np.ndarray] = dict(actives)
    for more in (plain, _numbered(out, sample.outs), other, _arrays(fixed_names, sample.fixed)):
        for name, value in more.items():
            same = name not in named or np.array_equal(named[name], value, equal_nan=True)
            named[name if same else f"kept {name}"] = np.asarray(value)
    known = {
        name: value
        for name, value in named.items()
        if value.dtype.kind in "fc" and value.size and np.all(np.isfinite(value))
    }
    discrete = {name: value for name, value in named.items() if value.dtype.kind in "iub"}
    bars = dict(zip(subject.bar_names, sample.bars)) or _numbered(f"{out}_bar", sample.bars)
    return Judged(sample, claimed, true, mask & finite, known, bars, discrete)


def _arrays(names: Sequence[str], leaves: Sequence[object]) -> dict[str, np.ndarray]:
    """The numeric leaves; keys and other objects are left out."""
    kinds = [getattr(getattr(leaf, "dtype", None), "kind", "O") for leaf in leaves]
    some = zip(names, leaves, kinds)
    return {name: np.asarray(leaf) for name, leaf, kind in some if kind in "iubfc"}


def _numbered(name: str, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    if len(values) == 1:
        return {name: np.asarray(values[0])}
    return {f"{name}[{i}]": np.asarray(value) for i, value in enumerate(values)}


def _distinct(cases: Sequence[Judged]) -> list[str]:
    """The names that all cases know, each array once, under the name that comes first."""
    names: list[str] = []
    for name in cases[0].known:
        if all(name in case.known for case in cases) and not any(
            all(np.array_equal(case.known[name], case.known[other]) for case in cases)
            for other in names
        ):
            names.append(name)
    return names


def _places_of_residuals(disagreement: Disagreement) -> dict[str, int]:
    """Which leaf of the residuals carries which name, told by the values."""
    leaves: list[np.ndarray] = []
    with Guard("the forward pass in double precision"):  # formulas then do without residuals
        leaves = _leaves(disagreement.subject, disagreement.given)
    found: dict[str, int] = {}
    for name, value in disagreement.residuals.items():
        for i, leaf in enumerate(leaves):
            same = leaf.shape == np.shape(value) and leaf.dtype.kind == np.asarray(value).dtype.kind
            if same and i not in found.values() and np.allclose(leaf, value, 1e-5, equal_nan=True):
                found[name] = i
                break
    return found


def _leaves(subject: Subject, sample: Sample) -> list[np.ndarray]:
    if subject.residuals is None:
        return []
    with jax.enable_x64(True):
        tree = subject.residuals(sample.actives, sample.fixed)
        leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
        return [np.asarray(leaf) for leaf in leaves]


def _residuals(
    subject: Subject, sample: Sample, places: Mapping[str, int]
) -> dict[str, np.ndarray]:
    if not places:
        return {}
    values = _leaves(subject, sample)
    return {name: values[i] for name, i in places.items()}
