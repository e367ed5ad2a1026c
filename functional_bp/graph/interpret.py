"""Graphs are run with a hook in place of each equation, and asked for what they hold.

``interpret`` is the engine's own: ``run(eqn, operands)`` stands for each equation, and ``rebuild``
goes on into the graphs that an equation holds. On it rest loops that are stopped, custom rules that
are left out, and iterations that take a step more. What is asked of a graph: its precision, its
thresholds, whether it loops. An iteration that has not converged is asked about since implicit
differentiation is right only where it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from functional_bp import _jax
from functional_bp.engine.sweeps import evaluate
from functional_bp.engine.sweeps import run as interpret
from functional_bp.graph.nested import inner_graphs, opened_scan

UNIT64 = float(np.finfo(np.float64).eps)  # relative spacing of float64
COMPARING = {"gt", "lt", "ge", "le", "eq", "ne", "max", "min", "clamp", "sub", "jit"}
MOST_THRESHOLDS = 6
ORDERING = {"gt", "lt", "ge", "le", "eq", "ne"}
STEP_LIMIT = 100_000  # iterations of a while_loop before a point counts as outside the domain


def is_inexact(x: Any) -> bool:
    """Tell whether ``x`` is a real or complex array or number, so that it has a cotangent."""
    dtype = getattr(x, "dtype", None)
    dtype = np.asarray(x).dtype if dtype is None else dtype
    return bool(jnp.issubdtype(dtype, np.inexact))


def unit_of(dtype: Any) -> float:
    """Return the relative spacing of a dtype: 2.2e-16 for float64, 1.2e-7 for float32."""
    return float(jnp.finfo(dtype).eps)


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Go through every equation, those of nested graphs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_graphs(eqn):
            yield from equations(inner.jaxpr)


def lowest_precision(jaxpr: Jaxpr) -> float:
    """Return the coarsest relative spacing among the graph's real and complex values."""
    avals: list[Any] = [v.aval for eqn in equations(jaxpr) for v in eqn.outvars]
    units = [unit_of(a.dtype) for a in avals if hasattr(a, "dtype") and is_inexact(a) and a.size]
    rounded = [
        2.0 ** -eqn.params["mantissa_bits"]
        for eqn in equations(jaxpr)
        if eqn.primitive.name == "reduce_precision"
    ]
    return max([UNIT64, *units, *rounded])


def thresholds(jaxpr: Jaxpr) -> list[float]:
    """Find the constants that values are compared with or shifted by: a branch may begin there."""
    found: set[float] = set()
    for eqn in equations(jaxpr):
        if eqn.primitive.name not in COMPARING:
            continue
        for atom in eqn.invars:
            if isinstance(atom, Literal) and np.ndim(atom.val) == 0:
                try:
                    value = float(np.real(atom.val))
                except (TypeError, ValueError):
                    continue
                if np.isfinite(value) and 0 < abs(value) < 1e4:
                    found.add(value)
    return sorted(found, key=abs)[:MOST_THRESHOLDS]


def asks_for_sign(jaxpr: Jaxpr) -> bool:
    """Tell whether a value is compared with zero, which gives both of its signs a meaning."""
    return any(
        eqn.primitive.name in ORDERING and isinstance(atom, Literal) and np.all(atom.val == 0)
        for eqn in equations(jaxpr)
        for atom in eqn.invars
    )


def has_while(jaxpr: Jaxpr) -> bool:
    """Tell whether a loop in the graph decides by its values when to stop."""
    return any(map(_is_while, equations(jaxpr)))


def _is_while(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "while"


def bounded(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``fun`` on a flat list of arrays, its loops stopped after ``STEP_LIMIT`` iterations.

    A loop that is stopped yields NaN. So no input that a search tries can hang it.
    """
    return _rewritten(fun, _is_while, _bounded_while)


def without_custom_rules(fun: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Return ``fun`` with the bodies of custom_vjp and custom_jvp functions, without their rules.

    Those that JAX itself defines (``jax.nn.relu``, …) keep their rules.
    """
    return _rewritten(fun, _custom_body, _run_custom_body)


def holds_custom_rules(jaxpr: Jaxpr) -> bool:
    """Tell whether a person's custom_vjp or custom_jvp function is in the graph."""
    return any(_custom_body(eqn) is not None for eqn in equations(jaxpr))


def _rewritten(
    fun: Callable[..., Any],
    is_meant: Callable[[JaxprEqn], Any],
    instead: Callable[[JaxprEqn, Sequence[Any], Any], Sequence[Any]],
) -> Callable[..., list[Any]]:
    """``fun`` on a flat list of arrays; some equations, at any depth, are run in another way."""

    def evaluated(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        if is_meant(eqn):
            return instead(eqn, operands, evaluated)
        if any(is_meant(e) for inner in inner_graphs(eqn) for e in equations(inner.jaxpr)):
            return rebuild(eqn, operands, evaluated)
        return evaluate(eqn, operands)

    def run(*arrays: Any) -> list[Any]:
        jaxpr, consts = _jax.open_jaxpr(jax.make_jaxpr(fun)(*arrays))
        return interpret(jaxpr, consts, arrays, evaluated)

    return run


def rebuild(eqn: JaxprEqn, operands: Sequence[Any], run: Any) -> Sequence[Any]:
    """Run the equation, with ``run`` for the equations of the graphs that it holds."""
    inners = inner_graphs(eqn)
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, operands, run)
    if name == "cond":
        index, *rest = operands
        branch = lambda inner: lambda *xs: interpret(inner.jaxpr, inner.consts, xs, run)
        return lax.switch(index, [branch(inner) for inner in inners], *rest)
    if len(inners) == 1 and len(inners[0].jaxpr.invars) == len(operands):
        return interpret(inners[0].jaxpr, inners[0].consts, operands, run)
    return evaluate(eqn, operands)


def _scan(eqn: JaxprEqn, operands: Sequence[Any], run: Any) -> Sequence[Any]:
    scan = opened_scan(eqn)
    held, first, xs = scan.divided(operands)

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = interpret(scan.body.jaxpr, scan.body.consts, [*held, *carry, *x], run)
        return outs[: scan.carries], outs[scan.carries :]

    last, ys = lax.scan(step, first, xs, length=scan.length, reverse=scan.is_reversed)
    return [*last, *ys]


def _bounded_while(eqn: JaxprEqn, operands: Sequence[Any], run: Any) -> Sequence[Any]:
    condition, body = inner_graphs(eqn)
    own, shared = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    tested, held, init = operands[:own], operands[own : own + shared], operands[own + shared :]

    def proceed(state: tuple[Any, list[Any]]) -> Any:
        count, carry = state
        goes_on = interpret(condition.jaxpr, condition.consts, [*tested, *carry])[0]
        return jnp.all(goes_on) & (count < STEP_LIMIT)

    def step(state: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        count, carry = state
        outs = interpret(body.jaxpr, body.consts, [*held, *carry], run)
        return count + 1, list(outs)

    count, carry = lax.while_loop(proceed, step, (jnp.int32(0), list(init)))
    stopped = count >= STEP_LIMIT
    return [jnp.where(stopped, jnp.nan, x).astype(x.dtype) if is_inexact(x) else x for x in carry]


def _custom_body(eqn: JaxprEqn) -> Any:
    """The body of a person's custom_vjp or custom_jvp function, None for any other equation."""
    if eqn.primitive.name not in ("custom_jvp_call", "custom_vjp_call"):
        return None
    inner = inner_graphs(eqn)[0]
    info = getattr(inner.jaxpr, "debug_info", None)
    made_in = str(getattr(info, "func_src_info", ""))
    return None if "jax/_src" in made_in or "site-packages/jax/" in made_in else inner


def _run_custom_body(eqn: JaxprEqn, operands: Sequence[Any], run: Any) -> Sequence[Any]:
    body = _custom_body(eqn)
    return interpret(body.jaxpr, body.consts, operands, run)


# Has an iteration converged? A loop of a fixed length that hands on a state and nothing else
# iterates a map: a fixed point, a root. Where one more step changes the result, the iteration has
# not arrived, and a gradient by the implicit function theorem answers another question than the
# one that was asked.


def holds_iteration(jaxpr: Jaxpr) -> bool:
    """Tell whether a loop in the graph iterates a map."""
    return any(map(_is_iteration, equations(jaxpr)))


def one_step_more(fun: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Return ``fun`` on a flat list of arrays, each of its iterations a step longer."""

    def run(*arrays: Any) -> list[Any]:
        jaxpr, consts = _jax.open_jaxpr(jax.make_jaxpr(fun)(*arrays))
        return interpret(jaxpr, consts, arrays, _step)

    return run


def _is_iteration(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name != "scan":
        return False
    scan = opened_scan(eqn)
    return not scan.divided(eqn.invars)[2] and len(eqn.outvars) == scan.carries


def _step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
    inners = inner_graphs(eqn)
    if _is_iteration(eqn):
        scan = opened_scan(eqn)
        held, first, _ = scan.divided(operands)
        body = lambda carry, _: (
            interpret(scan.body.jaxpr, scan.body.consts, [*held, *carry]), None
        )  # fmt: skip
        return lax.scan(body, first, length=scan.length + 1)[0]
    if len(inners) == 1 and holds_iteration(inners[0].jaxpr) and eqn.primitive.name != "scan":
        return interpret(inners[0].jaxpr, inners[0].consts, operands, _step)
    return evaluate(eqn, operands)
