"""An equation may hold graphs: which, how often each runs, which operand feeds which input.

==========================  =====================  ==========================================
operation                   graphs                 runs
==========================  =====================  ==========================================
``scan``                    body                   the length
``while``                   condition, body        unknown before it runs
``cond``                    one per branch         one of them, once
``custom_linear_solve``     solve; others          solve once; the others serve its derivative
``shard_map``               body, one device's     once per device
``jit``, ``remat2``, …      body                   once
==========================  =====================  ==========================================
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend.core import Jaxpr, JaxprEqn

from functional_bp import _jax
from functional_bp.engine.rule import rules

# Operations that run one graph, once, in their place: calls; and those with a derivative of their
# own, of which a call is what they compute.
CALLS = frozenset({"jit", "closed_call", "call", "remat2"})
WITH_OWN_RULE = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_lin"})


def called(eqn: JaxprEqn) -> Any:
    """Return the graph that a call runs in its place; None for what is no call."""
    if eqn.primitive.name not in CALLS | WITH_OWN_RULE:
        return None
    return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))


Operand = TypeVar("Operand")


class Inner(NamedTuple):
    """An equation holds one graph.

    Attributes:
        label: "body", "branch 1", "solve", …
        jaxpr: the graph.
        consts: the values of its constants.
        runs: how often it runs when the equation runs once; None where that is not known.
        operands: for every input, the number of the operand that (first) feeds it, or None.
        unchanged: for every input, whether it is that operand as a whole, the same on each run.
    """

    label: str
    jaxpr: Jaxpr
    consts: list[Any]
    runs: int | None
    operands: tuple[int | None, ...]
    unchanged: tuple[bool, ...]


# Parameters that hold the combiner of a reduction or a scatter: two scalars to one, no graph.
_COMBINERS = {"update_jaxpr", "select_jaxpr", "scatter_jaxpr"}
_COMBINING = {"reduce", "reduce_window"}


def inner_graphs(eqn: JaxprEqn) -> list[Inner]:
    """Return the graphs that an equation holds, in the order in which they run."""
    return list(_READERS.get(eqn.primitive.name, _any)(eqn))


def implementation(eqn: JaxprEqn) -> list[Inner]:
    """Return the graph by which a third party's primitive is computed, if its author gave one."""
    run = eqn.primitive.impl
    while isinstance(run, functools.partial):
        run = run.func
    if eqn.primitive in rules or run.__module__.partition(".")[0] in ("jax", "functional_bp"):
        return []
    call = functools.partial(eqn.primitive.impl, **eqn.params)
    try:
        jaxpr = jax.make_jaxpr(call)(*(v.aval for v in eqn.invars))
    except Exception:  # the author's function may ask for values, and raise anything
        return []
    return [_inner("body", jaxpr, 1, range(len(eqn.invars)))]


def _inner(
    label: str,
    jaxpr: Any,
    runs: int | None,
    operands: Sequence[int | None],
    fixed: int | None = None,
) -> Inner:
    opened, consts = _jax.open_jaxpr(jaxpr)
    operands = tuple(operands)
    if len(operands) != len(opened.invars):
        operands = (None,) * len(opened.invars)
    count = len(operands) if fixed is None else fixed
    same = tuple(i < count and operand is not None for i, operand in enumerate(operands))
    return Inner(label, opened, consts, runs, operands, same)


def every_graph(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """Go through the graph, then those nested in it, at any depth."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner in inner_graphs(eqn):
            yield from every_graph(inner.jaxpr)


class OpenedScan(NamedTuple):
    """A ``scan`` is opened.

    Attributes:
        body: the graph of one step, of constants, the carry and one slice of each of ``xs``.
        length: how many steps it takes.
        is_reversed: it goes from the last slice to the first.
        consts, carries: how many operands are constants, and how many are carried on.
    """

    body: Inner
    length: int
    is_reversed: bool
    consts: int
    carries: int

    def divided(self, operands: Sequence[Operand]) -> tuple[list[Operand], ...]:
        """Say what stands for the operands as constants, carry and ``xs``."""
        start, stop = self.consts, self.consts + self.carries
        return list(operands[:start]), list(operands[start:stop]), list(operands[stop:])


def opened_scan(eqn: JaxprEqn) -> OpenedScan:
    """Return a ``scan`` with its body, and the counts by which its operands divide."""
    consts, carries = _jax.scan_counts(eqn.params)
    length, operands = eqn.params["length"], range(len(eqn.invars))
    body = _inner("body", eqn.params["jaxpr"], length, operands, consts)
    return OpenedScan(body, length, eqn.params["reverse"], consts, carries)


def _while(eqn: JaxprEqn) -> Iterator[Inner]:
    tests, bodies = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = range(tests + bodies, len(eqn.invars))
    yield _inner("condition", eqn.params["cond_jaxpr"], None, [*range(tests), *carry], tests)
    body = [*range(tests, tests + bodies), *carry]
    yield _inner("body", eqn.params["body_jaxpr"], None, body, bodies)


def _cond(eqn: JaxprEqn) -> Iterator[Inner]:
    for i, branch in enumerate(eqn.params["branches"]):
        yield _inner(f"branch {i}", branch, 1, range(1, len(eqn.invars)))


def _linear_solve(eqn: JaxprEqn) -> Iterator[Inner]:
    counts, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    start = 0
    sides = [*range(sum(counts), len(eqn.invars))]
    for label, count, jaxpr in zip(type(jaxprs)._fields, counts, jaxprs):
        if jaxpr is not None:
            fed = sides if "solve" in label else [None] * len(sides)
            operands = [*range(start, start + count), *fed]
            yield _inner(label, jaxpr, 1 if label == "solve" else 0, operands)
        start += count


def _any(eqn: JaxprEqn) -> Iterator[Inner]:
    if eqn.primitive.name in _COMBINING:
        return
    runs = 1
    if eqn.primitive.name == "shard_map":
        mesh = eqn.params["mesh"]
        manual = eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes", ()))
        runs = math.prod(mesh.shape[axis] for axis in manual)
    for parameter, value in eqn.params.items():
        if parameter in _COMBINERS:
            continue
        found = [v for v in (value if isinstance(value, tuple | list) else [value])
                 if isinstance(v, Jaxpr | _jax.ClosedJaxpr)]  # fmt: skip
        for i, jaxpr in enumerate(found):
            label = parameter.replace("call_jaxpr", "").replace("jaxpr", "").strip("_") or "body"
            label += f" {i}" if len(found) > 1 else ""
            derivative = parameter.startswith(("transpose", "bwd", "jvp", "fwd"))
            yield _inner(label, jaxpr, 0 if derivative else runs, range(len(eqn.invars)))


_READERS = {
    "scan": lambda eqn: [opened_scan(eqn).body],
    "while": _while,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
}
