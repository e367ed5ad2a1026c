"""``bp.cotangents``: gradients at named values, alone and inside JAX's transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functional_bp as bp
from functional_bp.graph.graph import UnknownVariableError

X = jnp.array([0.3, -1.2, 2.0])
PARAMS = {"W1": jnp.array([[0.1, 0.4, -0.2], [0.7, -0.5, 0.3]]), "W2": jnp.array([1.5, -0.5])}


def loss(params: Any, x: Any) -> Any:
    z = bp.name(params["W1"] @ x, "z")
    h = bp.name(jnp.tanh(z), "h")
    return jnp.sum((params["W2"] * h) ** 2)


def after_h(params: Any, h: Any) -> Any:
    return jnp.sum((params["W2"] * h) ** 2)


def h_of(params: Any, x: Any) -> Any:
    return jnp.tanh(params["W1"] @ x)


def h_bar(params: Any, x: Any) -> Any:
    """The witness: JAX's gradient of what comes after h."""
    return jax.grad(after_h, 1)(params, h_of(params, x))


def close(one: Any, other: Any, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(one, other, rtol=rtol)


def test_intermediates_and_arguments() -> None:
    names = ["h", "z", "params['W1']", "x"]
    for call in (bp.cotangents(loss, names), jax.jit(bp.cotangents(loss, names))):
        found = call(PARAMS, X)
        assert set(found) == set(names)
        close(found["h"], h_bar(PARAMS, X))
        close(found["z"], h_bar(PARAMS, X) * (1 - h_of(PARAMS, X) ** 2))
        params_bar, x_bar = jax.grad(loss, (0, 1))(PARAMS, X)
        close(found["params['W1']"], params_bar["W1"])
        close(found["x"], x_bar)
    close(bp.cotangents(loss, "h")(PARAMS, X)["h"], h_bar(PARAMS, X))


def test_under_vmap_and_in_a_scan() -> None:
    xs = jnp.stack([X, 2 * X, -X])
    one = lambda x: bp.cotangents(loss, ["h"])(PARAMS, x)["h"]
    wanted = jnp.stack([h_bar(PARAMS, x) for x in xs])
    close(jax.vmap(one)(xs), wanted)
    close(jax.jit(jax.vmap(one))(xs), wanted)
    close(lax.scan(lambda c, x: (c, one(x)), 0, xs)[1], wanted)


@pytest.mark.parametrize("grad", [jax.grad, bp.grad])
def test_the_gradient_of_a_cotangent(grad: Any) -> None:
    ours = lambda x: jnp.sum(bp.cotangents(loss, ["h"])(PARAMS, x)["h"] ** 2)
    theirs = lambda x: jnp.sum(h_bar(PARAMS, x) ** 2)
    close(grad(ours)(X), jax.grad(theirs)(X))


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("bfloat16", 3e-2)])
def test_other_precisions(dtype: str, rtol: float) -> None:
    params, x = jax.tree.map(lambda a: a.astype(dtype), (PARAMS, X))
    found = bp.cotangents(loss, ["h", "x"])(params, x)
    assert found["h"].dtype == found["x"].dtype == dtype
    exact = h_bar(*jax.tree.map(lambda a: a.astype("float64"), (params, x)))
    close(found["h"].astype("float64"), exact, rtol)  # a few roundings of that precision


# Which value a name means


@jax.jit
def layer(x: Any) -> Any:
    return bp.name(jnp.sin(x), "h") * x


def test_a_name_in_a_function_that_is_called_twice() -> None:
    found = bp.cotangents(lambda x: jnp.sum(layer(layer(x))), ["h", "h_2"])(X)
    close(found["h_2"], layer(X))  # of the second call, result = Σ h₂ · layer(x)
    first = jax.grad(lambda h: jnp.sum(layer(h * X)))(jnp.sin(X))
    close(found["h"], first)


def test_an_argument_comes_before_a_tag_of_the_same_name() -> None:
    fun = lambda h: jnp.sum(3.0 * bp.name(h * 2.0, "h"))
    found = bp.cotangents(fun, ["h", "h_2"])(X)
    assert found["h"].tolist() == [6.0] * 3 and found["h_2"].tolist() == [3.0] * 3


def test_names_in_calls_and_remat_and_of_what_is_returned() -> None:
    inner = jax.checkpoint(jax.jit(lambda x: bp.name(jnp.sin(x), "s") ** 2))
    fun = jax.jit(lambda x: bp.name(jnp.sum(inner(x)), "L"))
    found = bp.cotangents(fun, ["s", "L", "result"])(X)
    close(found["s"], 2 * jnp.sin(X))
    assert found["L"] == found["result"] == 1.0


def test_the_steps_of_a_loop() -> None:
    def fun(w: Any, xs: Any) -> Any:
        step = lambda h, x: (bp.name(jnp.tanh(w * h + x), "h"), None)
        return lax.scan(step, 0.0, xs)[0]

    found = jax.jit(bp.cotangents(fun, ["h", "h_3"], unroll=True))(0.5, X)

    def with_zeros(zeros: Any) -> Any:
        step = lambda h, x: (jnp.tanh(0.5 * h + x[0]) + x[1], None)
        return lax.scan(step, 0.0, (X, zeros))[0]

    by_step = jax.grad(with_zeros)(jnp.zeros(3))
    close(found["h"], by_step[0])
    close(found["h_3"], by_step[2])


# Values that no argument reaches, that reach no output


def test_a_value_that_depends_on_no_argument() -> None:
    def fun(x: Any) -> Any:
        c = bp.name(jnp.cumsum(jnp.arange(3.0)), "c")
        return jnp.sum(x * c * c)

    close(bp.cotangents(fun, ["c"])(X)["c"], X * 2 * jnp.array([0.0, 1.0, 3.0]))


def test_a_value_made_from_integers_and_behind_stop_gradient() -> None:
    def fun(i: Any, x: Any) -> Any:
        s = bp.name(lax.stop_gradient(jnp.sin(x)), "s")
        f = bp.name(i.astype("float64"), "f")
        u = bp.name(jax.random.uniform(jax.random.key(0), (3,)), "u")
        return jnp.sum(s * f * x + u * x)

    i = jnp.array([1, 2, 3])
    found = bp.cotangents(fun, ["s", "f", "u"])(i, X)
    close(found["s"], i * X)
    close(found["f"], jnp.sin(X) * X)
    close(found["u"], X)


def test_a_closed_over_array_and_the_branch_of_a_cond() -> None:
    offset = jnp.array([1.0, 2.0, 3.0])

    def fun(p: Any, x: Any) -> Any:
        y = bp.name(lax.cond(p, jnp.sin, jnp.cos, x + offset), "y")
        return jnp.sum(y * y)

    assert "offset" in bp.trace(fun, True, X)
    found = jax.jit(bp.cotangents(fun, ["offset", "y"]))(True, X)
    close(found["offset"], jnp.sin(2 * (X + offset)))
    close(found["y"], 2 * jnp.sin(X + offset))


def test_dead_values_have_zeros() -> None:
    def fun(x: Any, y: Any) -> Any:
        bp.name(y * 2.0, "unused")
        s = lax.stop_gradient(bp.name(x * 3.0, "stopped"))
        return jnp.sum(x * s)

    found = bp.cotangents(fun, ["unused", "stopped", "y"])(X, X.astype("float32"))
    assert all(not np.any(bar) and bar.shape == (3,) for bar in found.values())
    assert [str(bar.dtype) for bar in found.values()] == ["float32", "float64", "float32"]
    assert found["y"].dtype == "float32"


# Only what is wanted is computed


def costly_before(x: Any, W: Any) -> Any:
    for _ in range(4):
        x = jnp.tanh(W @ x)
    return jnp.sum(bp.name(x, "h") ** 2)


def flops(fun: Callable[..., Any], *args: Any) -> float:
    """Of the compiled function, as XLA counts them; and no more were there to be compiled."""
    costs = jax.jit(fun).lower(*args).compile().cost_analysis()
    counted = (costs[0] if isinstance(costs, list) else costs).get("flops", 0.0)
    assert bp.trace(fun, *args).flops == pytest.approx(counted, rel=0.1, abs=300)
    return counted


def test_nothing_upstream_is_computed() -> None:
    args = (jnp.ones((32, 8)), jnp.ones((32, 32)))
    product = 2 * 32 * 32 * 8
    assert 4 * product <= flops(costly_before, *args) < 4.5 * product
    assert flops(bp.cotangents(costly_before, ["h"]), *args) < 4.5 * product
    assert flops(bp.cotangents(costly_before, ["h", "x"]), *args) >= 8 * product
    assert flops(bp.cotangents(costly_before, ["W"]), *args) >= 11 * product


def test_no_forward_sweep_where_the_cotangent_needs_no_value() -> None:
    args = (jnp.ones((32, 8)), jnp.ones((32, 32)))
    linear = lambda x, W: jnp.sum(bp.name(jnp.tanh(W @ x), "h") * 2.0)
    assert flops(bp.cotangents(linear, ["h"]), *args) < 100


def test_an_operation_without_a_rule_upstream_is_no_matter() -> None:
    fun = lambda x: jnp.sum(
        bp.name(lax.while_loop(lambda s: s[0] < 9.0, lambda s: s * 2, x), "h") ** 2
    )
    close(bp.cotangents(fun, ["h"])(X)["h"], 2 * 32 * X)
    with pytest.raises(bp.errors.MissingRuleError, match="max_steps"):
        bp.cotangents(fun, ["x"])(X)
    close(bp.cotangents(fun, ["x"], max_steps=9)(X)["x"], 2 * 32 * 32 * X)


# Errors


def test_unknown_names_list_near_ones() -> None:
    with pytest.raises(UnknownVariableError, match=r"of loss is called hh; near it: h"):
        bp.cotangents(loss, ["hh"])(PARAMS, X)
    with pytest.raises(UnknownVariableError, match=r"near it: params\['W1'\]"):
        bp.cotangents(loss, ["params.W1"])(PARAMS, X)


@jax.custom_vjp
def own(x: Any) -> Any:
    return bp.name(jnp.sin(x), "h") * x


own.defvjp(lambda x: (own(x), x), lambda x, y_bar: (y_bar,))

INSIDE = {
    "a scan": (
        lambda x: lax.scan(lambda c, _: (bp.name(jnp.sin(c), "h"), None), x, length=2)[0],
        "h stands inside a loop of fun: it has another value at every step",
        "unroll=True",
    ),
    "a scan in a call": (
        jax.jit(lambda x: lax.fori_loop(0, 2, lambda i, c: layer(c), x)),
        "h stands inside a loop",
        "scan over (xs, zeros), add the zeros to it, h = h + zero",
    ),
    "a while loop": (
        lambda x: lax.while_loop(lambda s: s[0] < 9, lambda s: bp.name(s * 2.0, "h"), x),
        "h stands inside a loop",
        "make it a lax.scan of known length",
    ),
    "a branch": (
        lambda x: lax.cond(x[0] > 0, layer, lambda x: x, x),
        "h stands inside a branch of fun, which runs or does not",
        "make zeros an argument of the branch",
    ),
    "a custom VJP": (
        own,
        "h stands inside an operation of fun that is differentiated as a whole",
        "name what goes into the operation",
    ),
}


@pytest.mark.parametrize("case", INSIDE)
def test_names_inside_what_stays_closed(case: str) -> None:
    inner, what, do = INSIDE[case]

    def fun(x: Any) -> Any:
        return jnp.sum(inner(x))

    with pytest.raises(UnknownVariableError) as failure:
        bp.cotangents(fun, ["h"])(X)
    message = str(failure.value)
    assert message.startswith(what) and do in message and f"at:       {__file__}:" in message


def test_a_value_without_a_gradient() -> None:
    fun = lambda i, x: jnp.sum(x[i])
    with pytest.raises(bp.errors.NotDifferentiableError, match="i has no gradient") as failure:
        bp.cotangents(fun, ["i"])(jnp.array([0, 2]), X)
    assert "got:      i64[2]" in str(failure.value)


def test_an_output_that_is_no_scalar() -> None:
    with pytest.raises(bp.errors.NotDifferentiableError) as failure:
        bp.cotangents(lambda x: x * 2.0, ["x"])(X)
    assert "the output f64[3]" in str(failure.value) and "a loss" in str(failure.value)
