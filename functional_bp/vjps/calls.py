"""``jit`` and its relatives call a graph, whose reverse sweep is their rule.

y = f(x) with f a graph: x̄ is f's reverse sweep, its residuals are f's. Markers (names, ties,
barriers) stand here too: they change no value, only what is known or done about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Jaxpr, JaxprEqn, primitives

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.axes import rank, relate
from functional_bp.engine.higher_order import HigherOrder, Mask, Options, Sweep, only, spread_over
from functional_bp.engine.plan import make_plan, out_activity, spread, variables
from functional_bp.engine.rule import (
    case,
    cplx,
    higher_order,
    integer,
    pointwise,
    real,
    rule,
    rules,
)


class Call(HigherOrder):
    """ȳ ↦ x̄ is the reverse sweep of the called graph.

    Derivation: y = f(x) with f = fₙ ∘ … ∘ f₁ gives x̄ = f₁ᵀ … fₙᵀ ȳ, so the call's sweep is the
    sweep of its body, and a caller may run it in place.

    Residuals: those of the body.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.jaxpr, self.consts = self.body()
        self.out_active = out_activity(self.jaxpr, active, options)

    def body(self) -> tuple[Jaxpr, list[Any]]:
        """Return the called graph and its constants."""
        names = [name for name in ("jaxpr", "call_jaxpr", "call") if name in self.eqn.params]
        return _jax.open_jaxpr(self.eqn.params[names[0]])

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan the body's sweeps."""
        self.plan = make_plan(*self._question(seeded, needed))
        self.wanted = self.plan.reached

    def _question(self, seeded: Mask, needed: Mask) -> tuple[Any, ...]:
        asked = zip(self.held, asked_if_held(self.jaxpr))
        held = tuple(here and matters for here, matters in asked)
        return self.jaxpr, self.active, seeded, needed, self.options, held if any(held) else ()

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the body's forward sweep in place."""
        return sweeps.forward(self.plan, self.consts, operands)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the body's reverse sweep in place."""
        return sweeps.reverse(self.plan, residuals, cotangents)

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run the body's forward-mode sweep in place."""
        return sweep(self.jaxpr, self.consts, operands, dots, self.options)

    def push(self, along: Callable[..., Any], residuals: Any, dots: Any) -> Sequence[Any]:
        """Push the tangents by what the body's reverse sweep keeps, in place."""
        return along(self.plan, residuals, dots, self.options)


class _Sweeps:
    """The sweeps of a plan are jitted functions, one set per graph and question.

    A residual that is an operand, a constant or an output of the call is not returned once more.
    """

    def __init__(self, *key: Any) -> None:
        *question, held = key
        self.plan, self.options = make_plan(*question, held=held), question[-1]
        self._push: Callable[..., Any] | None = None
        self._forward = jax.jit(self._swept)
        self.reverse = jax.jit(lambda kept, bars: sweeps.reverse(self.plan, kept, bars))

    def _swept(self, consts: Any, args: Any) -> Any:
        outs, residuals = sweeps.forward(self.plan, consts, args)
        leaves, self.tree = jax.tree.flatten(residuals)
        given = [*consts, *args, *outs]
        seen = {id(x): (True, i) for i, x in reversed(list(enumerate(given))) if x is not None}
        kept: list[Any] = []
        for leaf in leaves:
            if id(leaf) not in seen:
                seen[id(leaf)] = (False, len(kept))
                kept.append(leaf)
        self.places = [seen[id(leaf)] for leaf in leaves]
        return outs, kept

    def forward(self, consts: Sequence[Any], args: Sequence[Any]) -> tuple[list[Any], Any]:
        """Return the call's outputs, and the residuals of its body."""
        outs, kept = self._forward(list(consts), list(args))
        given = [*consts, *args, *outs]
        leaves = [given[i] if is_given else kept[i] for is_given, i in self.places]
        return outs, jax.tree.unflatten(self.tree, leaves)

    def push(self, along: Callable[..., Any], residuals: Any, dots: Sequence[Any]) -> list[Any]:
        """Push the call's tangents by what its reverse sweep keeps."""
        if self._push is None:
            self._push = jax.jit(lambda kept, dots: along(self.plan, kept, dots, self.options))
        return self._push(residuals, dots)


_sweeps = lru_cache(maxsize=1024)(_Sweeps)


@lru_cache(maxsize=1024)
def _tangents(jaxpr: Jaxpr, options: Options, sweep: Sweep) -> Callable[..., Any]:
    """Make the forward-mode sweep of a graph a jitted function."""
    push = lambda consts, args, dots: sweep(jaxpr, consts, args, dots, options)
    return jax.jit(push, inline=size(jaxpr) < SMALL)


SMALL = 10  # equations


@lru_cache(maxsize=4096)
def asked_if_held(jaxpr: Jaxpr) -> Mask:
    """Say which inputs of a graph a pullback asks for if they are there anyway."""
    asked: set[Any] = set()
    for eqn in jaxpr.eqns:
        rule = rules.get(eqn.primitive)
        if eqn.primitive is primitives.jit_p:
            inner = asked_if_held(_jax.open_jaxpr(eqn.params["jaxpr"])[0])
        elif rule is not None:
            names = {name for pullback in rule.if_held.values() for name in pullback.keeps}
            inner = [n.text in names for n in spread(rule.operands, len(eqn.invars))]
        else:
            continue
        asked.update(variables(only(eqn.invars, inner)))
    return tuple(v in asked for v in jaxpr.invars)


@lru_cache(maxsize=4096)
def size(jaxpr: Jaxpr) -> int:
    """Count a graph's equations, those of the calls in it included."""
    inner = [e.params["jaxpr"] for e in jaxpr.eqns if e.primitive is primitives.jit_p]
    return len(jaxpr.eqns) + sum(size(_jax.open_jaxpr(graph)[0]) for graph in inner)


rules.changed += [_sweeps.cache_clear, _tangents.cache_clear, asked_if_held.cache_clear]


@higher_order(
    primitives.jit_p,
    cases=[
        case(jax.jit(lambda x, y: (jnp.sin(x) * y, x + 1)), real(3), real(3)),
        case(jax.jit(lambda x: jax.jit(jnp.tanh)(x) * 2), real(2, 2)),
    ],
)
class Jit(Call):
    """ȳ ↦ x̄ is the reverse sweep of the jitted graph, which stays a call.

    Derivation: as for any call. Its sweeps are jitted, as the person asked by writing ``jit``:
    a graph that is called sixty times is planned, traced and compiled once. Inside an outer
    ``jit`` those of a graph of a few equations are run in place, which is quicker.

    Residuals: those of the body.
    """

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan the body's sweeps, unless another call of the graph has done so."""
        self.sweeps = _sweeps(*self._question(seeded, needed))
        self.plan = self.sweeps.plan
        self.wanted = self.plan.reached

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the body's forward sweep as a jitted function."""
        placed = self._placed(operands, "in_shardings")
        if self._in_place():
            outs, residuals = super().forward(*placed)
        else:
            outs, residuals = self.sweeps.forward(self.consts, placed)
        return self._placed(outs, "out_shardings"), residuals

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the body's reverse sweep as a jitted function."""
        if self._in_place():
            return super().reverse(residuals, cotangents)
        return self.sweeps.reverse(residuals, list(cotangents))

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run the body's forward-mode sweep as a jitted function."""
        if self._in_place():
            return super().tangents(sweep, operands, dots)
        return _tangents(self.jaxpr, self.options, sweep)(self.consts, list(operands), list(dots))

    def push(self, along: Callable[..., Any], residuals: Any, dots: Any) -> Sequence[Any]:
        """Push the tangents by what the body's reverse sweep keeps."""
        if self._in_place():
            return super().push(along, residuals, dots)
        return self.sweeps.push(along, residuals, list(dots))

    def _in_place(self) -> bool:
        return _jax.is_staged_now() and (self.options.in_place or size(self.jaxpr) < SMALL)

    def _placed(self, values: Sequence[Any], which: str) -> list[Any]:
        """Constrain the values to the shardings that the person gave to ``jit``."""
        return [
            lax.with_sharding_constraint(value, sharding)
            if isinstance(sharding, jax.sharding.Sharding) and value is not None
            else value
            for value, sharding in zip(values, self.eqn.params[which], strict=True)
        ]


for _path in ("core.call_p", "core.closed_call_p"):
    higher_order(_jax.find_primitive(_path), why=Call.__doc__ or "")(Call)


def _gated(x: Any) -> Any:
    return jnp.tanh(x) * x


def _waves(x: Any, y: Any) -> Any:
    return jnp.sin(x) * y


higher_order(
    _jax.find_primitive("lax.lax.composite_p"),
    why="ȳ ↦ x̄ is the reverse sweep of the composite's decomposition, to which it is equal by "
        "definition.",
    cases=[case(lambda x: lax.composite(_gated, name="test.gate")(x), real(3), reference=_gated,
                note="jax: differentiation rule for composite not implemented")],
)(Call)

_mapped_by_hand = jax.custom_batching.custom_vmap(_waves)
_mapped_by_hand.def_vmap(lambda _, _batched, x, y: (_waves(x, y), True))
higher_order(
    _jax.find_primitive("custom_batching.custom_vmap_p"),
    why="ȳ ↦ x̄ is the reverse sweep of the function under ``custom_vmap``: a custom batching rule "
        "states how to map, not another function.",
    cases=[case(lambda x, y: _mapped_by_hand(x, y), real(3), real(3), reference=_waves,
                note="jax: custom_vmap does not support reverse-mode autodiff")],
)(Call)

_partitioned_by_hand = custom_partitioning(_gated)
_partitioned_by_hand.def_partition(
    partition=lambda mesh, given, result: (mesh, _gated, given[0].sharding, (given[0].sharding,)),
    sharding_rule="i -> i",
)
higher_order(
    _jax.find_primitive("custom_partitioning.custom_partitioning_p"),
    why="ȳ ↦ x̄ is the reverse sweep of the function under ``custom_partitioning``: a partitioning "
        "rule states where to compute, not another function.",
    cases=[case(lambda x: _partitioned_by_hand(x), real(4), reference=_gated,
                note="jax: differentiation rule for custom_partitioning not implemented")],
)(Call)


# Markers.

def each_its_own(operands_t: Any, outputs_t: Any) -> Any:
    """Each output has the axes of its operand, and nothing to do with the others."""
    labels = [[(k, i) for i in range(rank(x))] for k, x in enumerate(operands_t)]
    return relate(labels, labels)


_tie: Any = _jax.find_primitive("lax.lax.tie_p")
pointwise(_jax.find_primitive("ad_checkpoint.name_p"), "x -> y", x=lambda y_bar: y_bar,
     why="y = x; the name is for whoever reads the graph",
     cases=[case(lambda x: checkpoint_name(x, "h") * x, real(3)),
            case(lambda x: checkpoint_name(x, "h") * x, cplx(3))])
rule(_tie, "x, y -> z", y=lambda z_bar: z_bar,
     axes=lambda x_t, y_t: relate([[None] * rank(x_t), range(rank(y_t))], [range(rank(y_t))]),
     why="z = y, scheduled after x",
     cases=[case(lambda x, y: _tie.bind(x, y) * x, real(3), real(3))])


@higher_order(
    lax.optimization_barrier_p, axes=each_its_own,
    cases=[
        case(lambda x, m, y: lax.optimization_barrier((x, m, y * x))[::2],
             real(3), integer(3), real(3)),
        case(lambda x, y: lax.optimization_barrier((x, y))[1] * y, real(3), real(3),
             note="an output without a cotangent"),
    ],
)
class Barrier(HigherOrder):
    """x̄ᵢ = ȳᵢ, behind one barrier that the cotangents pass together, as the values did.

    Derivation:

        yᵢ = xᵢ; an output of an inactive operand is inactive
    """

    def __init__(self, eqn: Any, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.out_active = self.wanted

    def forward(self, *operands: Any) -> tuple[list[Any], None]:
        """Pass the operands behind a barrier; nothing is kept."""
        return lax.optimization_barrier_p.bind(*operands), None

    def reverse(self, residuals: None, cotangents: Any) -> list[Any]:
        """Pass the cotangents that there are behind a barrier."""
        given = [bar is not None for bar in cotangents]
        return spread_over(lax.optimization_barrier(only(cotangents, given)), given)
