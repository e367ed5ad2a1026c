"""Which integers a function understands: those of the axes that its arguments index.

An integer argument's flow is followed through the graph to where it selects: a gather or scatter,
a dynamic slice, a comparison with 0 … n − 1 (as in a one-hot encoding).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from functional_bp.graph.nested import inner_graphs

COPYING = {"broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "transpose"}
ORDERING = {"lt", "le", "gt", "ge"}

Sources = frozenset[int]  # the graph's inputs that a value comes from
NOTHING: Sources = frozenset()


class IndexRange(NamedTuple):
    """Integers that index something: 0 … length − 1, and none twice where they are distinct.

    Writing twice to the same place (``x.at[i].set(…)``) is not defined, and has no derivative.
    """

    length: int
    distinct: bool = False


def index_ranges(jaxpr: Jaxpr) -> dict[int, IndexRange]:
    """The range of each integer input that indexes something, by position."""
    found: dict[int, IndexRange] = {}
    _follow(jaxpr, {v: frozenset([k]) for k, v in enumerate(jaxpr.invars) if _is_integer(v)}, found)
    return found


def _follow(
    jaxpr: Jaxpr, sources: dict[Var, Sources], found: dict[int, IndexRange]
) -> list[Sources]:
    """Record the ranges in a graph; returns what its outputs come from."""
    counting: dict[Var, int] = {}  # values that are 0 … n − 1 along an axis
    of = lambda atom: NOTHING if isinstance(atom, Literal) else sources.get(atom, NOTHING)  # noqa: E731
    for eqn in jaxpr.eqns:
        writes = eqn.primitive.name == "scatter"
        for position, length in _selected(eqn, counting):
            for source in of(eqn.invars[position]):
                before = found.get(source, IndexRange(length))
                found[source] = IndexRange(min(length, before.length), writes or before.distinct)
        _count(eqn, counting)
        together = NOTHING.union(*map(of, eqn.invars))
        outs = [together] * len(eqn.outvars)
        for inner in inner_graphs(eqn):
            fed = {
                v: of(eqn.invars[k])
                for v, k in zip(inner.jaxpr.invars, inner.operands)
                if k is not None
            }
            returned = _follow(inner.jaxpr, fed, found)
            outs = returned if len(returned) == len(outs) else outs
        sources.update({v: s for v, s in zip(eqn.outvars, outs) if s and _is_integer(v)})
    return [of(atom) for atom in jaxpr.outvars]


def _selected(eqn: JaxprEqn, counting: Mapping[Var, int]) -> list[tuple[int, int]]:
    """The operands that select something, by position, and from how many."""
    name, params = eqn.primitive.name, eqn.params
    shape: Any = getattr(eqn.invars[0].aval, "shape", ()) if eqn.invars else ()
    if name == "gather":
        return [(1, min(shape[d] for d in params["dimension_numbers"].start_index_map))]
    if name.startswith("scatter"):
        axes = params["dimension_numbers"].scatter_dims_to_operand_dims
        return [(1, min(shape[d] for d in axes))]
    if name == "dynamic_slice":
        return [(1 + d, n - m + 1) for d, (n, m) in enumerate(zip(shape, params["slice_sizes"]))]
    if name == "eq" or name in ORDERING:
        lengths = [None if isinstance(a, Literal) else counting.get(a) for a in eqn.invars]
        more = int(name in ORDERING)
        return [(1 - k, length + more) for k, length in enumerate(lengths) if length]
    return []


def _count(eqn: JaxprEqn, counting: dict[Var, int]) -> None:
    """Note outputs that count along an axis."""
    if eqn.primitive.name == "iota":
        counting[eqn.outvars[0]] = eqn.params["shape"][eqn.params["dimension"]]
    elif eqn.primitive.name in COPYING and not isinstance(eqn.invars[0], Literal):
        length = counting.get(eqn.invars[0])
        if length:
            counting[eqn.outvars[0]] = length


def _is_integer(v: Any) -> bool:
    dtype = getattr(v.aval, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype.kind in "iu"
