"""The samples that a hypothesis has to stand up to: the given one and fresh ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from functional_bp._jax import open_jaxpr
from functional_bp.check.clock import now
from functional_bp.check.diagnosis.lines import thresholds_in_code
from functional_bp.check.diagnosis.numbers.hypothesis import unexplained
from functional_bp.check.graphs import equations
from functional_bp.check.subject import Disagreement, Sample, Subject

LARGE = 100_000  # entries of the argument, above which nothing is regressed


@dataclass(frozen=True)
class Case:
    """One sample, seen from the argument that is judged.

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
    """The cases that a hypothesis has to explain, all of them.

    Attributes:
        disagreement: what is to be explained.
        given: the case on which the claim was found wrong.
        fresh: further cases of the same class of inputs; empty where none can be drawn.
        deadline: when to stop, in ``clock.now()`` seconds.
        kept: the known arrays that are residuals, under whatever name.
    """

    disagreement: Disagreement
    given: Case
    fresh: tuple[Case, ...]
    deadline: float
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
    def cases(self) -> tuple[Case, ...]:
        """All cases, the given one first."""
        return (self.given, *self.fresh)

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
        try:
            graph = jax.make_jaxpr(pull)(sample.actives, sample.fixed, sample.bars)
        except Exception:  # it runs on numbers alone
            return pull
        primitives = {e.primitive.name for e in equations(open_jaxpr(graph)[0])}
        return jax.jit(pull) if primitives & {"scan", "while", "shard_map"} else pull

    @property
    def large(self) -> bool:
        """Whether the argument is too large for regressions."""
        return self.given.true.size > LARGE

    @property
    def late(self) -> bool:
        """Whether time is up."""
        return now() > self.deadline

    @property
    def here(self) -> str:
        """How a statement that fresh samples do not bear out has to begin."""
        known = len(self.fresh) >= 2 or self.subject.only_here
        return "" if known else "on the given inputs, "

    def explains(self, predict: Callable[[Case], np.ndarray | None]) -> float | None:
        """The unexplained part, over the cases at its largest; None where one is unexplained."""
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
