"""Graphs that equations hold: loops, branches, calls, against JAX's own trace."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from small_graphs import PARAMS, f32, mlp, names, rnn

import functional_bp as bp


def test_scan_counts_its_body_times_its_length() -> None:
    graph = bp.trace(rnn, f32(4, 4), f32(4), f32(10, 4))
    (scan,) = graph
    (body,) = scan.nested
    assert (scan.operation, scan.label, body.label, body.runs) == ("scan", "step", "body", 10)
    assert body.graph.flops == 2 * 4 * 4 + 4 + 4
    assert scan.flops == graph.flops == 10 * body.graph.flops
    assert names(body.graph.inputs) == ["W", "h_0", "x"] and body.graph["h"].tag == "h"
    assert names(body.operands) == ["W", "h0", "xs"]
    assert graph.exact


def test_while_has_no_known_trip_count() -> None:
    def loop(x: Any) -> Any:
        return lax.while_loop(lambda s: jnp.sum(s) < 9.0, lambda s: s * x, x)

    graph = bp.trace(loop, f32(3))
    condition, body = graph.equations[0].nested
    assert (condition.label, condition.runs, body.label, body.runs) == (
        "condition", None, "body", None,
    )  # fmt: skip
    assert names(body.graph.inputs) == ["x", "s"] and names(condition.graph.inputs) == ["s"]
    assert not graph.exact and graph.flops == (3 + 1) + 3


def test_cond_costs_its_dearest_branch() -> None:
    def choose(p: Any, x: Any) -> Any:
        return lax.cond(p, lambda u: jnp.sin(jnp.cos(u)), lambda u: u, x)

    (equation,) = [e for e in bp.trace(choose, True, f32(5)) if e.operation == "cond"]
    assert [n.label for n in equation.nested] == ["branch 0", "branch 1"]
    assert equation.flops == 10 and names(equation.nested[1].operands) == ["x"]


def test_linear_solve_runs_its_solver_only() -> None:
    def solve(A: Any, b: Any) -> Any:
        return lax.custom_linear_solve(
            lambda v: A @ v, b, lambda _, c: 2.0 * c, transpose_solve=lambda _, c: jnp.sin(c)
        )

    (equation,) = bp.trace(solve, f32(3, 3), f32(3))
    assert {n.label: n.runs for n in equation.nested} == {
        "matvec": 0, "vecmat": 0, "solve": 1, "transpose_solve": 0,
    }  # fmt: skip
    assert equation.flops == 3
    assert names(equation.nested[0].graph.inputs)[0] == "A"


@jax.custom_vjp
def doubled(x: Any) -> Any:
    return 2.0 * x


doubled.defvjp(lambda x: (2.0 * x, None), lambda _, y_bar: (2.0 * y_bar,))


@pytest.mark.parametrize(
    ("fun", "inside"),
    [
        (jax.jit(lambda x: jnp.sin(x)), "sin"),
        (jax.checkpoint(lambda x: jnp.sin(x)), "sin"),
        (doubled, "mul"),
        (jax.nn.relu, "max"),
    ],
)
def test_calls_hold_their_graph(fun: Any, inside: str) -> None:
    graph = bp.trace(lambda x: fun(x), f32(3))
    (call,) = graph
    assert call.nested and call.flops == 3
    deepest = list(graph.walk())[-1]
    assert deepest.equation.operation == inside and deepest.depth >= 1 and deepest.runs == 1


def test_shard_map_counts_every_device() -> None:
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    double = jax.shard_map(lambda x: 2.0 * x, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    (equation,) = bp.trace(lambda x: double(x), f32(8))
    (body,) = equation.nested
    assert body.runs == 4 and body.graph.inputs[0].shape == (2,) and equation.flops == 8


def test_combiners_are_no_graphs() -> None:
    graph = bp.trace(lambda x: x.at[0].add(1.0), f32(4))
    assert not any(v.equation.nested for v in graph.walk() if "scatter" in v.equation.operation)


def test_walk_visits_every_equation_of_the_jaxpr() -> None:
    graph = bp.trace(rnn, f32(4, 4), f32(4), f32(10, 4))
    visits = [(v.equation.operation, v.depth, v.runs) for v in graph.walk()]
    assert visits[0] == ("scan", 0, 1)
    assert visits[1:] == [("dot_general", 1, 10), ("add", 1, 10), ("tanh", 1, 10)]


def test_the_graph_is_that_of_the_jaxpr() -> None:
    """Every equation of the graph, evaluated on its own variables, gives the function's value."""
    x, params = jnp.ones((2, 3)), jax.tree.map(lambda s: jnp.full(s.shape, 0.1), PARAMS)
    graph = bp.trace(mlp, params, x)
    values = dict(zip(graph.inputs, [*jax.tree.leaves(params), x]))
    for equation in graph:
        given = [v.value if v.kind == "literal" else values[v] for v in equation.inputs]
        out = equation.eqn.primitive.bind(*given, **equation.eqn.params)
        values.update(zip(equation.outputs, out if isinstance(out, list) else [out]))
    np.testing.assert_allclose(values[graph.outputs[0]], mlp(params, x), rtol=1e-12)
