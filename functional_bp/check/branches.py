"""Both sides of every comparison: a search drives inputs across thresholds nobody has crossed.

Where code compares (``where(p > 100, …)``, ``minimum``, ``clip``, ``abs``) a gradient may be wrong
on the one side alone. The comparisons stand in the graph; the margin of each, left − right, is a
function of the inputs, so that its gradient says how to bring it to the other side.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from functional_bp.backprop import evaluate
from functional_bp.check import graphs
from functional_bp.check.arrays import Arrays, single
from functional_bp.check.evaluation import Evaluation, Point
from functional_bp.graph.nested import inner_graphs

BETWEEN = {"lt", "le", "gt", "ge", "max", "min"}
AT_ZERO = {"abs", "sign"}
ENTERED = {"jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"}
STEPS = 25
BEYOND = (0.05, 0.5)  # how far past a threshold, in units of the way to it


class Branches:
    """The comparisons of a graph, and which of them have been seen both ways.

    Args:
        evaluation: the precision to run in.
        jaxpr, consts: the graph of claim and reference, over actives, fixed leaves and cotangents.
    """

    def __init__(self, evaluation: Evaluation, jaxpr: Jaxpr, consts: Sequence[Any]) -> None:
        self.evaluation = evaluation

        def extremes(*point: Arrays) -> Any:
            margins = _margins(jaxpr, consts, jax.tree.leaves(point))
            finite = [(jnp.where(jnp.isfinite(m), m, jnp.nan)).ravel() for m in margins]
            return (
                jnp.stack([jnp.nanmin(m) for m in finite]),
                jnp.stack([jnp.nanmax(m) for m in finite]),
            )

        def towards(actives: Arrays, fixed: Arrays, bars: Arrays, up: Any, down: Any) -> Any:
            lows, highs = extremes(actives, fixed, bars)
            pick = lambda weights, values: jnp.sum(jnp.where(weights != 0, values, 0.0))  # noqa: E731
            return pick(up, highs) - pick(down, lows)

        self._extremes = jax.jit(extremes)
        self._towards = jax.jit(jax.value_and_grad(towards))
        self.above = self.below = np.zeros(0, bool)

    def see(self, point: Point) -> None:
        """Note on which sides of its comparisons a point lies."""
        lows, highs = self._run(self._extremes, *point)
        if not self.above.size:
            self.above = self.below = np.zeros(lows.shape, bool)
        self.above, self.below = self.above | (highs > 0), self.below | (lows < 0)

    @property
    def counts(self) -> tuple[int, int]:
        """How many comparisons have been seen both ways, and how many there are."""
        return int(np.sum(self.above & self.below)), len(self.above)

    def across(self, start: Point, until: float) -> Iterator[Point]:
        """Points on the side of a comparison that no point was on, as far as any can be reached."""
        for k in range(len(self.above)):
            if time.monotonic() > until:
                return
            if self.above[k] == self.below[k]:
                continue
            wanted = np.zeros(len(self.above))
            wanted[k] = 1.0
            up, down = (wanted, 0 * wanted) if self.below[k] else (0 * wanted, wanted)
            yield from self._cross(start, up, down, until)

    def _cross(self, start: Point, up: Any, down: Any, until: float) -> Iterator[Point]:
        actives, goals, way = start.actives, list(BEYOND), None
        for _ in range(STEPS):
            height, slopes = self._run(self._towards, actives, *start[1:], up, down)
            height = float(height)
            if way is None:
                way = max(-height, 1e-6)
            while goals and height >= goals[0] * way:
                goals.pop(0)
                yield start._replace(actives=actives)
            if not goals or not np.isfinite(height) or time.monotonic() > until:
                return
            moved = _step(actives, slopes, 1.2 * goals[0] * way - height)
            if moved is None:
                return
            actives = moved

    def _run(self, fun: Any, *args: Any) -> Any:
        with self.evaluation.precision():
            return jax.tree.map(np.asarray, fun(*args))


def holds_comparison(jaxpr: Jaxpr) -> bool:
    """Whether a real value is compared with another, where ``Branches`` looks."""
    for eqn in jaxpr.eqns:
        if _compared(eqn):
            return True
        if eqn.primitive.name in ENTERED and holds_comparison(inner_graphs(eqn)[0].jaxpr):
            return True
    return False


def _compared(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name not in (*BETWEEN, *AT_ZERO, "clamp"):
        return False
    avals: list[Any] = [atom.aval for atom in eqn.invars]
    return all(np.issubdtype(aval.dtype, np.floating) for aval in avals)


def _margins(jaxpr: Jaxpr, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """left − right of every comparison, in the order in which they run."""
    margins: list[Any] = []

    def step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        if _compared(eqn):
            if eqn.primitive.name in BETWEEN:
                margins.append(operands[0] - operands[1])
            elif eqn.primitive.name == "clamp":
                margins.extend(operands[1] - bound for bound in (operands[0], operands[2]))
            else:
                margins.append(operands[0])
        if eqn.primitive.name in ENTERED:
            inner = inner_graphs(eqn)[0]
            return graphs.interpret(inner.jaxpr, inner.consts, operands, step)
        return evaluate(eqn, operands)

    graphs.interpret(jaxpr, consts, arrays, step)
    return margins


def _step(actives: Arrays, slopes: Arrays, missing: float) -> Arrays | None:
    """A Newton step towards a height, in units of each entry's size, half of it at the most."""
    sizes = [np.abs(x) + 0.1 * np.mean(np.abs(x)) + 1e-9 for x in actives]
    ways = [s**2 * np.conj(g) for s, g in zip(sizes, slopes)]
    gain = float(sum(np.sum(np.abs(s * g) ** 2) for s, g in zip(sizes, slopes)))
    if not np.isfinite(gain) or gain < 1e-200:
        return None
    rate = missing / gain
    longest = max(float(np.max(np.abs(rate * w) / s, initial=0.0)) for w, s in zip(ways, sizes))
    rate *= min(1.0, 0.5 / (longest + 1e-300))
    return tuple(single(x + rate * w).astype(x.dtype) for x, w in zip(actives, ways))
