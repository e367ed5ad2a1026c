"""Higher-order rules differentiate operations that hold a graph of their own, as a whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jax import numpy as jnp
from jax.extend.core import JaxprEqn
from jax.interpreters import ad

from functional_bp import _jax
from functional_bp.engine.rule import rules
from functional_bp.errors import StrictError, compose, missing_rule

Mask = tuple[bool, ...]
Sweep = Callable[..., tuple[list[Any], list[Any]]]  # tangents.forward_mode


class Options(NamedTuple):
    """Options are what a caller may set for a whole sweep, nested graphs included."""

    strict: bool = False  # refuse rules that are not ours
    max_steps: int | None = None  # the bound for loops without a static trip count
    staged: bool | None = None  # stage the function to a graph first (True), or record it (False)
    in_place: bool = False  # write calls out: a loop's step divides what it keeps, seen through
    linear: bool = False  # the graph is linear in its active inputs: it is being transposed


def only(values: Iterable[Any], mask: Iterable[bool]) -> list[Any]:
    """Return the values that the mask marks."""
    return list(itertools.compress(values, mask))


def spread_over(values: Iterable[Any], mask: Iterable[bool]) -> list[Any]:
    """Undo ``only``: None where the mask is off."""
    remaining = iter(values)
    return [next(remaining) if on else None for on in mask]


@lru_cache(maxsize=4096)
def _inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.inexact)


def has_tangent(aval: Any) -> bool:
    """Say whether a value of this type has a tangent space: real and complex arrays do."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or not hasattr(aval, "shape"):
        return bool(getattr(aval, "is_high", False))
    return _inexact(dtype)


class HigherOrder:
    """A higher-order rule has sweeps of its own: for ``scan``, ``cond``, ``jit``, …

    It is for operations that hold a graph, and for the few that are differentiated as a whole.

    The engine makes one for every active equation, then calls, in this order, ``seed`` once,
    ``forward`` and ``reverse`` any number of times. ``out_active`` must be set on return from
    ``__init__``, ``wanted`` on return from ``seed``. One with a leaner forward mode than the
    transpose of ``reverse`` has a method ``tangents(sweep, operands, dots)``.
    """

    out_active: Mask
    wanted: Mask
    held: Mask = ()  # the operands that are there anyway when ``reverse`` runs

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        self.eqn, self.active, self.options = eqn, active, options
        self.out_active = tuple(has_tangent(v.aval) for v in eqn.outvars)
        self.wanted = tuple(on and has_tangent(a.aval) for on, a in zip(active, eqn.invars))

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Learn which outputs will be given a cotangent, and which outputs' values are used."""
        self.seeded, self.needed = seeded, needed

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Return the outputs, and a pytree of arrays that ``reverse`` needs. An output that is not
        needed may be None; a residual that is itself an operand costs nothing.
        """
        raise NotImplementedError

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Return one cotangent per operand, None where it is zero or not wanted. Absent output
        cotangents are None.
        """
        raise NotImplementedError


def higher_order_of(eqn: JaxprEqn, active: Mask, options: Options) -> HigherOrder | None:
    """Return the structure of an active equation; None where it has pullbacks instead."""
    rule = rules.get(eqn.primitive)
    if rule is None:
        return _foreign(eqn, options)(eqn, active, options)
    return None if rule.higher_order is None else rule.higher_order(eqn, active, options)


# Rules of our own for JAX's functions, by the tangent function that JAX gave to ``defjvp``.
of_jax: dict[Any, type[HigherOrder]] = {}


class Unruled(HigherOrder):
    """Nobody can differentiate this operation: it raises an error once its cotangent is wanted."""

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Raise: there is no rule of ours, and none that its author registered, or may be used."""
        where = _jax.place_of(self.eqn)
        if self.eqn.primitive not in ad.primitive_jvps:
            raise missing_rule(self.eqn.primitive.name, where, [a.aval for a in self.eqn.invars])
        raise StrictError(
            compose(
                f"strict=True refuses the operation {self.eqn.primitive.name!r}",
                where=where,
                got="a rule that its author registered with JAX",
                expected="a rule in bp.rules",
                do="register one with bp.rule, or leave strict out",
            )
        )


def _foreign(eqn: JaxprEqn, options: Options) -> type[HigherOrder]:
    """Return the rule that asks JAX for the one that an author registered there."""
    primitive = eqn.primitive
    is_transposable = options.linear and primitive in ad.primitive_transposes
    if options.strict or not (primitive in ad.primitive_jvps or is_transposable):
        return Unruled
    assert rules.foreign is not None
    return rules.foreign
