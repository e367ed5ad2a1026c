"""``cond`` and ``switch`` are differentiated by the reverse sweep of the branch that was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, Mask, Options, Sweep, spread_over
from functional_bp.engine.plan import make_plan, out_activity, union
from functional_bp.engine.rule import boolean, case, higher_order, integer, real


def _choose(p: Any, x: Any, y: Any) -> Any:
    return lax.cond(p, lambda x, y: (jnp.sin(x) * y, x), lambda x, y: (x * x, y), x, y)


@higher_order(
    lax.cond_p,
    cases=[
        case(_choose, boolean(values=True), real(3), real(3)),
        case(_choose, boolean(values=False), real(3), real(3)),
        case(lambda i, x: lax.switch(i, [jnp.sin, lambda x: x * 0 + 2, lambda x: x * x * x], x),
             integer(values=2), real(2)),
        case(lambda x, y: lax.cond(x > 0, lambda: y * 2, lambda: jnp.exp(y)), real(), real(2)),
    ],
)
class Cond(HigherOrder):
    """x̄ = fᵢᵀ ȳ, with i the branch that was taken; the predicate has no cotangent.

    Derivation: where the predicate is locally constant, y = fᵢ(x) for one i.

    Residuals: the index, and room for what the greediest branch keeps: branches share slots of
    equal shape and dtype. Operands that a branch names are not copied.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.branches = [_jax.open_jaxpr(branch) for branch in eqn.params["branches"]]
        self.out_active = (False,) * len(eqn.outvars)
        for jaxpr, _ in self.branches:
            self.out_active = union(self.out_active, out_activity(jaxpr, active[1:], options))

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan every branch for the same question."""
        self.needed = needed
        self.plans = [
            make_plan(jaxpr, self.active[1:], seeded, needed, self.options)
            for jaxpr, _ in self.branches
        ]
        reached = (False,) * len(self.active[1:])
        for plan in self.plans:
            reached = union(reached, plan.reached)
        self.wanted = (False, *reached)

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Return the branch's outputs, and its residuals in shared slots."""
        index, *values = operands
        layouts = [self._layout(b, values) for b in range(len(self.plans))]
        slots: list[Any] = []
        for layout in layouts:
            layout.place(slots)

        def branch(b: int) -> Any:
            def run(*values: Any) -> Any:
                outs, residuals = self._run(b, values)
                leaves = jax.tree.leaves(residuals)
                filled = [sweeps.zeros(aval) for aval in slots]
                for leaf, (kind, where) in zip(leaves, layouts[b].places, strict=True):
                    if kind == "slot":
                        filled[where] = sweeps.match_axes(leaf, slots[where])
                return outs, filled

            return run

        outs, filled = lax.switch(index, [branch(b) for b in range(len(self.plans))], *values)
        used = {where for lay in layouts for kind, where in lay.places if kind == "operand"}
        kept = [value if i in used else None for i, value in enumerate(values)]
        return outs, _Taken(index, kept, filled, tuple(layouts))

    def _run(self, b: int, values: Sequence[Any]) -> Any:
        outs, residuals = sweeps.forward(self.plans[b], self.branches[b][1], values)
        return [out if n else None for out, n in zip(outs, self.needed)], residuals

    def _layout(self, b: int, values: Sequence[Any]) -> _Layout:
        """Say what branch ``b`` keeps: which operands, which slots, in which tree."""
        found: list[Any] = []

        def run(*values: Any) -> list[Any]:
            _, residuals = self._run(b, values)
            leaves, tree = jax.tree.flatten(residuals)
            operand = {id(v): i for i, v in enumerate(values)}
            found.append((tree, [operand.get(id(leaf)) for leaf in leaves]))
            return leaves

        avals = _jax.open_jaxpr(jax.make_jaxpr(run)(*values))[0].outvars
        tree, from_operands = found[0]
        return _Layout(tree, from_operands, [v.aval for v in avals])

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the reverse sweep of the branch that was taken."""
        operands, wanted = self.eqn.invars[1:], self.wanted[1:]

        def branch(b: int) -> Any:
            def run(kept: Any, filled: Any, bars: Any) -> list[Any]:
                layout: _Layout = residuals.layouts[b]
                source = {"operand": kept, "slot": filled}
                leaves = [source[kind][where] for kind, where in layout.places]
                found = sweeps.reverse(self.plans[b], jax.tree.unflatten(layout.tree, leaves), bars)
                return [
                    sweeps.zeros(a.aval) if bar is None else sweeps.match_axes(bar, a.aval)
                    for bar, a, on in zip(found, operands, wanted) if on
                ]

            return run

        found = lax.switch(
            residuals.index, [branch(b) for b in range(len(self.plans))],
            residuals.operands, residuals.slots, list(cotangents),
        )
        return [None, *spread_over(found, wanted)]

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run the forward-mode sweep of the branch that is taken."""
        index, *values = operands

        def branch(b: int) -> Any:
            def run(values: Any, dots: Any) -> Any:
                jaxpr, consts = self.branches[b]
                outs, out_dots = sweep(jaxpr, consts, values, dots, self.options)
                return outs, [
                    (sweeps.zeros(v.aval) if dot is None else dot) if on else None
                    for dot, v, on in zip(out_dots, self.eqn.outvars, self.out_active)
                ]

            return run

        runs = [branch(b) for b in range(len(self.branches))]
        return lax.switch(index, runs, values, list(dots[1:]))


class _Layout:
    """A layout says where one branch's residuals lie."""

    def __init__(self, tree: Any, from_operands: list[int | None], avals: list[Any]) -> None:
        self.tree, self.from_operands, self.avals = tree, from_operands, avals
        self.places: list[tuple[str, int]] = []

    def place(self, slots: list[Any]) -> None:
        """Find a slot of its type for every residual, sharing those of other branches."""
        taken: set[int] = set()
        for operand, aval in zip(self.from_operands, self.avals):
            if operand is not None:
                self.places.append(("operand", operand))
                continue
            same = [i for i, s in enumerate(slots) if i not in taken and _same(s, aval)]
            if not same:
                slots.append(aval)
                same = [len(slots) - 1]
            taken.add(same[0])
            self.places.append(("slot", same[0]))


def _same(a: Any, b: Any) -> bool:
    axes = _jax.varying_axes
    return a.shape == b.shape and a.dtype == b.dtype and axes(a) == axes(b)


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class _Taken:
    """The residuals of a ``cond`` are the index of the branch and what that branch kept."""

    index: Any
    operands: list[Any]
    slots: list[Any]
    layouts: tuple[_Layout, ...] = field(metadata={"static": True})
