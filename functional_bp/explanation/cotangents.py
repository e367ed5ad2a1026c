"""``bp.cotangents`` makes a function of gradients at named values, to be compiled and composed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import Options, has_tangent
from functional_bp.engine.plan import plan_once
from functional_bp.engine.staging import explaining
from functional_bp.errors import NotDifferentiableError, compose
from functional_bp.explanation.full_sweeps import lookup, seeds_of
from functional_bp.graph import names
from functional_bp.graph.graph import Graph, Variable
from functional_bp.graph.inline import inlined, opened_jaxpr
from functional_bp.graph.trace import trace


def cotangents(
    fun: Callable[..., Any],
    names_: Sequence[str],
    *,
    unroll: bool = False,
    max_steps: int | None = None,
) -> Callable[..., dict[str, Any]]:
    """Return a function like ``fun`` that computes h̄ = ∂ fun/∂h for each named value.

    Only what is asked for is computed: the reverse sweep ends at the named values, and the forward
    sweep keeps what the way there needs.

    Args:
        fun: returns a real scalar.
        names_: names of intermediates (``bp.name``) or of arguments, as ``bp.trace`` shows them:
            ``h``, ``params['W1']``. A name that is used again, in the second call of a function
            or by a second ``bp.name``, has a number behind from then on: ``h``, ``h_2``, ``h_3``.
        unroll: write ``scan`` loops out, so that names inside them mean something: ``h`` of the
            step that runs first, ``h_2`` of the next.
        max_steps: the bound of loops that decide when to stop.

    Returns:
        A pure function, to be called under ``jit``, ``vmap`` and the like: a dict by name. A value
        that does not reach the output has zeros.

    Raises:
        UnknownVariableError: the graph has no variable of that name; near names are listed.
        NotDifferentiableError: the output is no real scalar, or the named value has no gradient.

    Example:
        >>> import jax, jax.numpy as jnp, functional_bp as bp
        >>> loss = lambda x: jnp.sum(bp.name(jnp.sin(x), "h") ** 2)
        >>> jax.jit(bp.cotangents(loss, ["h"]))(jnp.array([0.0, jnp.pi / 2]))["h"].tolist()
        [0.0, 2.0]
    """
    if isinstance(names_, str):
        names_ = [names_]

    def cotangents_fun(*args: Any) -> dict[str, Any]:
        graph = trace(fun, *args)
        seeds = seeds_of(graph, do="differentiate a scalar: a loss, or one entry of the output")
        flat = inlined(graph, unroll=unroll)
        wanted = {name: _wanted(flat, name) for name in names_}
        leaves = [jnp.asarray(x) for x in jax.tree.leaves(args) if names.leaf_is_array(x)]
        bars = _bars_of(flat, leaves, seeds, list(wanted.values()), Options(max_steps=max_steps))
        return {
            name: sweeps.zeros(v.aval) if bars.get(v) is None else bars[v]
            for name, v in wanted.items()
        }

    return cotangents_fun


def _wanted(flat: Graph, name: str) -> Variable:
    variable = lookup(flat, name)
    if not has_tangent(variable.aval):
        raise NotDifferentiableError(
            compose(
                f"{name} has no gradient in {flat.name}",
                got=variable.type,
                expected="a value of a real or complex dtype",
            )
        )
    return variable


def _bars_of(
    flat: Graph,
    args: Sequence[Any],
    seeds: Sequence[Any],
    wanted: Sequence[Variable],
    options: Options,
) -> dict[Variable, Any]:
    """The cotangents of the wanted variables; nothing upstream of them is computed."""
    jaxpr = opened_jaxpr(flat)
    plan = plan_once(
        jaxpr,
        tuple(flat.of_var[var] in wanted for var in jaxpr.invars),
        tuple(seed is not None for seed in seeds),
        (False,) * len(seeds),
        options,
        held=(True,) * len(jaxpr.invars),
        sources=tuple(v for e in flat for v in e.eqn.outvars if flat.of_var[v] in wanted),
    )
    record = sweeps.Record({}, {})
    with explaining(is_staged=True):
        _, residuals = sweeps.forward(plan, (), [*flat.consts, *args])
        sweeps.reverse(plan, residuals, seeds, record)
    return {flat.of_var[var]: bar for var, bar in record.bars.items()}
