"""The flat graph: the same function, without calls; names, scopes and lines stay a person's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from small_graphs import names, operations, rnn

import functional_bp as bp
from functional_bp.engine import sweeps
from functional_bp.explanation.full_sweeps import flatten_taken
from functional_bp.graph import Graph
from functional_bp.graph.inline import CALLS, inlined

X = np.array([0.3, -1.2, 2.0])
W = np.array([[0.1, 0.4, -0.2], [0.7, -0.5, 0.3], [0.2, 0.1, 0.9]])


def evaluate(graph: Graph, *leaves: Any) -> list[Any]:
    """Every equation run on the variables that the graph itself says it takes."""
    values: dict[Any, Any] = dict(zip((*graph.inputs, *graph.constants), (*leaves, *graph.consts)))
    read = lambda v: np.asarray(v.value) if v.kind == "literal" else values[v]
    for equation in graph:
        values.update(
            zip(equation.outputs, sweeps.evaluate(equation.eqn, [*map(read, equation.inputs)]))
        )
    return [read(v) for v in graph.outputs]


def assert_same_function(flat: Graph, fun: Callable[..., Any], *args: Any) -> None:
    """The flat graph, by its variables and by its jaxpr, gives what the function gives."""
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(args)]
    wanted = jax.tree.leaves(fun(*args))
    assert len(wanted) == len(flat.outputs) == len(flat.jaxpr.outvars)
    by_jaxpr = jax.jit(lambda *xs: _by_jaxpr(flat, xs))(*leaves)
    for ours, theirs, value in zip(evaluate(flat, *leaves), by_jaxpr, wanted):
        np.testing.assert_allclose(ours, value, rtol=1e-12)
        np.testing.assert_allclose(theirs, value, rtol=1e-12)
    named = [v.name for v in flat.variables if v.name != "_"]
    assert len(named) == len(set(named)), named
    assert [e.index for e in flat] == list(range(len(flat)))
    assert [e.eqn for e in flat] == list(flat.jaxpr.eqns)


def _by_jaxpr(flat: Graph, leaves: Any) -> list[Any]:
    env: dict[Any, Any] = dict(zip(flat.jaxpr.constvars, flat.consts))
    env.update(zip(flat.jaxpr.invars, leaves))
    for eqn in flat.jaxpr.eqns:
        operands = [sweeps.value_of(a, env) for a in eqn.invars]
        env.update(zip(eqn.outvars, sweeps.evaluate(eqn, operands)))
    return [sweeps.value_of(v, env) for v in flat.jaxpr.outvars]


@jax.jit
def double(x: Any) -> Any:
    return x + x


@jax.jit
def layer(x: Any) -> Any:
    h = bp.name(jnp.sin(x), "h")
    return double(h) * x


@jax.custom_jvp
def own_jvp(x: Any) -> Any:
    return jnp.sin(jnp.sin(x))


own_jvp.defjvps(lambda x_dot, y, x: x_dot)


@jax.custom_vjp
def own_vjp(x: Any) -> Any:
    return jnp.sin(jnp.sin(x))


own_vjp.defvjp(lambda x: (own_vjp(x), x), lambda x, y_bar: (y_bar,))


def chosen(i: Any, x: Any) -> Any:
    """A branch with a call, a branch in a branch, and a branch that does nothing."""
    inner = lambda x: lax.cond(x[0] > 0.0, layer, lambda x: x**2, x)
    return lax.switch(i, [layer, inner, lambda x: x], x) + 1.0


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "jit in jit, called again": (lambda x: jax.jit(lambda x: layer(layer(x)) + layer(x))(x), (X,)),
    "remat": (lambda x: jax.checkpoint(lambda x: jnp.sin(layer(x)))(x), (X,)),
    "remat with a policy": (
        jax.checkpoint(lambda x: layer(x), policy=jax.checkpoint_policies.everything_saveable),
        (X,),
    ),
    "closed-over constants": (lambda x: jax.jit(lambda y: W @ y + jnp.arange(3.0))(W @ x), (X,)),
    "inputs and literals returned": (lambda x: (x, 2.0, jax.jit(lambda y: (y, 3.0))(x)), (X,)),
    "one output twice": (lambda x: (lambda y: {"a": y, "b": [y, y + 1]})(layer(x)), (X,)),
    "a pytree": (lambda p, x: layer(p["W"] @ x + p["b"][0]), ({"W": W, "b": (X, 1.0)}, X)),
    "integers and booleans": (
        lambda i, m, x: jnp.where(m, x[i], -x[i]), (np.array([2, 0]), np.array([True, False]), X),
    ),
    "a while loop": (lambda x: lax.while_loop(lambda s: s[0] < 9.0, lambda s: s + s, x), (X,)),
    "a scan": (rnn, (W, X, np.ones((2, 3)))),
    "branches that are not chosen yet": (chosen, (1, X)),
    "a Cholesky solve": (lambda A, b: jnp.linalg.solve(A @ A.T, b), (W, X)),
    "derivatives of their own": (lambda x: jax.jit(lambda x: own_jvp(own_vjp(x)))(x), (X,)),
}  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS)
def test_it_is_the_same_function(case: str) -> None:
    fun, args = FUNCTIONS[case]
    args = jax.tree.map(jnp.asarray, args)
    flat = inlined(bp.trace(fun, *args))
    assert not CALLS & set(operations(flat))
    assert_same_function(flat, fun, *args)


def test_the_witness_sees_a_wrong_graph() -> None:
    flat = inlined(bp.trace(lambda x: jnp.sin(x) * 2.0, X))
    with pytest.raises(AssertionError):
        assert_same_function(flat, lambda x: jnp.sin(x) * 2.1, X)


def test_keys() -> None:
    def noisy(key: Any, x: Any) -> Any:
        return x * jax.random.uniform(key, (3,))

    key = jax.random.key(3)
    flat = inlined(bp.trace(noisy, key, X))
    assert names(flat.inputs) == ["key", "x"] and "random_bits" in operations(flat)
    np.testing.assert_allclose(evaluate(flat, key, X)[0], noisy(key, X), rtol=1e-12)


# Names, scopes, lines


def test_a_name_given_in_a_function_is_numbered_by_call() -> None:
    flat = inlined(bp.trace(lambda x: layer(layer(x)), X))
    assert [v.name for v in flat.variables if v.tag == "h"] == ["h", "h_2"]
    assert flat.defined_by("h_2").operation == "sin"  # type: ignore[union-attr]
    assert flat["result"] is flat.outputs[0] and flat.outputs[0].name == "result"


def test_a_tag_outside_names_what_a_call_returns() -> None:
    flat = inlined(bp.trace(lambda x: bp.name(double(x), "twice") * 3.0, X))
    assert flat["twice"].tag == "twice" and flat.defined_by("twice").operation == "add"  # type: ignore[union-attr]


def test_arguments_keep_their_names_and_letters_avoid_all_given_ones() -> None:
    def fun(a: Any, h: Any) -> Any:
        return layer(a * 2.0 + h)  # its tag h is not the argument h

    flat = inlined(bp.trace(fun, X, X))
    assert names(flat.inputs) == ["a", "h"] and flat["h_2"].tag == "h"
    assert not {"a", "h"} & {v.name for e in flat for v in e.outputs}


def test_scopes_are_unique_paths() -> None:
    def fun(x: Any) -> Any:
        with jax.named_scope("block"):
            x = layer(layer(x))
        with jax.named_scope("layer"):
            x = x * x
        return layer(x)

    flat = inlined(bp.trace(fun, X))
    calls = [e.scope for e in flat if e.operation == "sin"]
    assert calls == ["block/layer", "block/layer_2", "layer_2"]
    assert [e.scope for e in flat if e.operation == "mul"][2] == "layer"  # the named scope's own
    # a call of one equation opens no scope of its own
    assert [e.scope for e in flat if e.operation == "add"] == calls


def test_scopes_of_branches_are_unique_too() -> None:
    def cond(x: Any) -> Any:  # called as the operation is
        return jnp.sin(jnp.sin(x))

    def fun(p: Any, x: Any) -> Any:
        return jax.jit(cond)(lax.cond(p, lambda x: jnp.cos(jnp.cos(x)), lambda x: x, x))

    flat = flatten_taken(bp.trace(fun, True, X), [True, X])
    scopes = {e.operation: e.scope for e in flat}
    assert {scopes["sin"], scopes["cos"]} == {"cond", "cond_2"}


def test_lines_are_those_of_the_person() -> None:
    flat = inlined(bp.trace(lambda x: layer(x), X))
    files = {equation.source[0] for equation in flat if equation.source}
    assert files == {__file__}
    first = layer.__wrapped__.__code__.co_firstlineno
    lines = {e.operation: e.source[1] for e in flat if e.source}
    assert lines["sin"] == first + 2 and lines["mul"] == first + 3 and len(lines) == len(flat)


def test_lines_of_an_unrolled_loop_are_those_of_its_body_and_call() -> None:
    flat = inlined(bp.trace(rnn, W, X, np.ones((2, 3))), unroll=True)
    files = {equation.source[0].rsplit("/")[-1] for equation in flat if equation.source}
    assert files == {"small_graphs.py"} and all(equation.source for equation in flat)


# Branches


@pytest.mark.parametrize("index", [0, 1, 2, 7, -1])  # lax.switch clamps
def test_the_branch_that_runs_is_opened(index: int) -> None:
    args = (jnp.asarray(index), jnp.asarray(X))
    flat = flatten_taken(bp.trace(chosen, *args), args)
    assert "cond" not in operations(flat)
    assert_same_function(flat, chosen, *args)


def test_constants_beside_a_branch_stay_constants() -> None:
    args = (jnp.asarray(1), jnp.asarray(X))
    fun = jax.jit(lambda i, x: jnp.asarray(W) @ chosen(i, jnp.asarray(W) @ x))
    flat = flatten_taken(bp.trace(fun, *args), args)
    assert names(flat.inputs) == ["i", "x"] and len(flat.constants) == len(flat.consts) > 0
    assert_same_function(flat, fun, *args)


def test_a_branch_in_a_branch_in_a_call() -> None:
    args = (jnp.asarray(1), -jnp.asarray(X))
    fun = jax.jit(lambda i, x: jax.checkpoint(chosen)(i, x))
    flat = flatten_taken(bp.trace(fun, *args), args)
    assert "integer_pow" in operations(flat) and "sin" not in operations(flat)
    assert_same_function(flat, fun, *args)


# Loops


@pytest.mark.parametrize("reverse", [False, True])
def test_an_unrolled_scan(reverse: bool) -> None:
    def fun(W: Any, h0: Any, xs: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = bp.name(jnp.tanh(W @ h + x["x"]), "h")
            return h, {"h": h, "twice": double(h) * x["n"]}

        return lax.scan(step, h0, xs, reverse=reverse)

    xs = {"x": jnp.arange(9.0).reshape(3, 3) / 9, "n": jnp.arange(3)}
    flat = inlined(bp.trace(fun, W, X, xs), unroll=True)
    assert "scan" not in operations(flat)
    assert_same_function(flat, fun, jnp.asarray(W), jnp.asarray(X), xs)
    steps = [e.scope for e in flat if e.operation == "tanh"]
    order = ["step/t0", "step/t1", "step/t2"]
    assert steps == (order[::-1] if reverse else order)
    assert [v.name for v in flat.variables if v.tag] == ["h", "h_2", "h_3"]


def test_unrolled_loops_in_loops_and_of_no_steps() -> None:
    def fun(x: Any, none: Any) -> Any:
        outer = lambda c, _: (lax.fori_loop(0, 2, lambda i, c: c * (i + 1.5), c), c)
        x, ys = lax.scan(outer, x, None, length=2)
        return lax.scan(lambda c, z: (c * z, c), x, none)[0], ys

    args = (jnp.asarray(X), jnp.zeros((0, 3)))
    flat = inlined(bp.trace(fun, *args), unroll=True)
    assert "scan" not in operations(flat)
    assert_same_function(flat, fun, *args)


def test_a_branch_in_an_unrolled_loop_and_a_loop_in_a_branch() -> None:
    def fun(p: Any, x: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            return lax.cond(x > 0, lambda c: c * x, lambda c: c - x, c), None

        return lax.cond(p, lambda x: lax.scan(step, 1.0, x)[0], lambda x: jnp.sum(x), x)

    args = (jnp.asarray(True), jnp.asarray(X))
    flat = flatten_taken(bp.trace(fun, *args), args, unroll=True)
    assert not {"scan", "cond"} & set(operations(flat))
    assert [e.operation for e in flat if e.operation in ("mul", "sub")] == ["mul", "sub", "mul"]
    assert_same_function(flat, fun, *args)


# What stays closed


@pytest.mark.parametrize("fun", [own_jvp, own_vjp])
def test_a_derivative_of_its_own_stays_closed(fun: Any) -> None:
    flat = inlined(bp.trace(jax.jit(lambda x: fun(x)), X))
    (equation,) = flat
    assert equation.operation.startswith("custom_") and equation.nested


def test_a_while_loop_stays_closed() -> None:
    loop = jax.jit(lambda x: lax.while_loop(lambda s: s < 9.0, lambda s: s * 2.0, x))
    (equation,) = inlined(bp.trace(loop, 1.0), unroll=True)
    assert equation.operation == "while" and names(equation.inputs) == ["x"]


def test_a_shard_map_stays_closed() -> None:
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    double = jax.shard_map(lambda x: 2.0 * x, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    fun = jax.jit(lambda x: double(x) + 1.0)
    flat = inlined(bp.trace(fun, jnp.ones(8)))
    assert operations(flat) == ["shard_map", "add"]
    assert_same_function(flat, fun, jnp.ones(8))


def test_what_feeds_a_closed_graph_is_a_variable_of_the_flat_one() -> None:
    flat = inlined(bp.trace(jax.jit(lambda W, x: rnn(W, x * 2.0, W)), W, X))
    (scan,) = [e for e in flat if e.operation == "scan"]
    fed = scan.nested[0].operands
    assert fed == scan.inputs and all(v in flat.variables for v in fed)
