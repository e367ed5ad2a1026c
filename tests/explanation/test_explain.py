"""``bp.explain``: values and cotangents against perturbation, shares, what is kept, its errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled

import functional_bp as bp
from functional_bp.explanation.explanation import NoValuesError
from functional_bp.explanation.record import UnreachedError
from functional_bp.graph.graph import UnknownVariableError

X = jnp.array([0.3, -1.2, 2.0])
W = jnp.array([[0.1, 0.4, -0.2], [0.7, -0.5, 0.3], [0.2, 0.1, 0.9]])

Mark = Callable[[Any, str], Any]  # bp.name in the explained function


def network(mark: Mark, W: Any, x: Any) -> Any:
    z = mark(W @ x, "z")
    h = mark(jax.nn.sigmoid(z), "h")
    return mark(jnp.sum(h * h) / 2.0, "L")


def in_calls(mark: Mark, W: Any, x: Any) -> Any:
    layer = jax.jit(lambda x: mark(jnp.tanh(W @ x), "h") * x)
    y = mark(jax.checkpoint(layer)(x), "y")
    return lax.cond(y[0] > 10.0, jnp.sum, lambda y: jnp.sum(mark(y**3, "cube")), y)


def branching(mark: Mark, W: Any, x: Any) -> Any:
    u = mark(x * 2.0, "u")
    v = mark(jnp.concatenate([u, u[:1]]), "v")
    return jnp.sum(jnp.where(v > 0, v * v, mark(-v, "w"))) + u[2]


FUNCTIONS = {"network": network, "in calls": in_calls, "branching": branching}


@pytest.mark.parametrize("case", sampled(FUNCTIONS, 2))
def test_values_and_cotangents_of_every_name(case: str) -> None:
    """h̄ is the gradient with respect to a zero that is added to h, by JAX's own grad."""
    fun = FUNCTIONS[case]
    explanation = bp.explain(lambda W, x: fun(bp.name, W, x), W, X)
    values: dict[str, Any] = {}

    def keep(x: Any, name: str) -> Any:
        jax.debug.callback(lambda x: values.setdefault(name, np.asarray(x)), x)
        return x

    fun(keep, W, X)
    jax.effects_barrier()
    assert values
    zeros = {name: jnp.zeros_like(value) for name, value in values.items()}

    def perturbed(zeros: Any, W: Any, x: Any) -> Any:
        return fun(lambda x, name: x + zeros[name], W, x)

    by_name, W_bar, x_bar = jax.grad(perturbed, (0, 1, 2))(zeros, W, X)
    for name, value in values.items():
        np.testing.assert_allclose(explanation.value[name], value, rtol=1e-12)
        bar = explanation.cotangent[name]
        np.testing.assert_allclose(bar, by_name[name], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(explanation.cotangent["x"], x_bar, rtol=1e-12)
    if np.any(W_bar):
        np.testing.assert_allclose(explanation.cotangent["W"], W_bar, rtol=1e-12)
    else:
        assert "W" not in explanation.cotangent


@pytest.mark.parametrize("case", FUNCTIONS)
def test_shares_sum_to_the_cotangent(case: str) -> None:
    explanation = bp.explain(lambda W, x: FUNCTIONS[case](bp.name, W, x), W, X)
    graph, several = explanation.graph, 0
    for variable, bar in explanation.bars.items():
        uses = [
            explanation.share(equation, i)
            for equation in graph.uses(variable)
            for i, operand in enumerate(equation.inputs)
            if operand is variable
        ]
        shares = [share for share in uses if share is not None]
        seeds = [s for v, s in zip(graph.outputs, explanation.seeds) if v is variable]
        several += len(shares) > 1
        np.testing.assert_allclose(sum([*shares, *seeds]), bar, rtol=1e-12)
    assert several  # a value with several uses was among them
    assert set(explanation.values) == set(graph.variables)


def looping(mark: Mark, W: Any, x: Any) -> Any:
    return jnp.sum(lax.scan(lambda h, t: (jnp.tanh(W[:, 0] * h + t), h), W[:, 1], x)[1])


def closed(mark: Mark, W: Any, x: Any) -> Any:
    h = jax.nn.gelu(jax.nn.relu(W) * jnp.maximum(W, 0.1))
    return jnp.sum(jnp.sort(jax.nn.silu(h), axis=0) * W)


def layer(mark: Mark, W: Any, x: Any) -> Any:
    return jnp.tanh(mark(jnp.tanh(mark(jnp.sin(W), "s") * jnp.cos(W)), "t") * x)


def checkpointed(mark: Mark, W: Any, x: Any) -> Any:
    """One call behind the other, one in another, and one whose branch is opened."""
    run = jax.checkpoint(partial(layer, mark))
    nested = jax.checkpoint(lambda h: run(layer(mark, h, x), x))
    branch = jax.checkpoint(lambda h: lax.cond(h.sum() > 9, jnp.sin, lambda v: jnp.cos(v * v), h))
    return jnp.sum(branch(nested(run(run(W, x), x))) * W)


def saving(mark: Mark, W: Any, x: Any) -> Any:
    """What policies save: by name, and products inside a function of their own."""
    names = jax.checkpoint_policies.save_only_these_names("t")
    by_name = jax.checkpoint(partial(layer, mark), policy=names)
    product = jax.jit(lambda h: jnp.tanh(jnp.tanh(h @ W.T) @ W) * h)
    dots = jax.checkpoint(product, policy=jax.checkpoint_policies.dots_saveable)
    return jnp.sum(by_name(dots(dots(by_name(W, x))), x))


def checkpointed_loop(mark: Mark, W: Any, x: Any) -> Any:
    step = jax.checkpoint(lambda h, t: (jnp.tanh(W[:, 0] * jnp.sin(h) + t), h))
    run = jax.checkpoint(lambda h: lax.scan(step, h, x)[1])
    return jnp.sum(run(W[:, 1])) + jnp.sum(lax.scan(step, W[:, 2], x)[1])


KEEPING = {
    **FUNCTIONS,
    "looping": looping,
    "closed": closed,
    "checkpointed": checkpointed,
    "saving": saving,
    "checkpointed_loop": checkpointed_loop,
}


@pytest.mark.parametrize("case", [case for case in KEEPING if case != "in calls"])
def test_what_is_kept_is_what_the_pullback_holds(case: str) -> None:
    """What loops and closed operations keep inside is counted too.

    Of a ``cond``, here but in a checkpoint, the pullback keeps what any branch needs.
    """
    fun = lambda W, x: KEEPING[case](bp.name, W, x)
    _, pullback = bp.vjp(fun, W, X, staged=True)
    held = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(pullback)}  # one array may serve two
    assert sum(bp.explain(fun, W, X).kept_bytes.values()) == sum(held.values()) > 0


def test_a_checkpoint_keeps_its_inputs() -> None:
    """Three tanh of 1,000 entries: 12,000 bytes, or those of the input."""
    x = jnp.linspace(0.1, 1.0, 1000, dtype="float32")
    layers = lambda x: jnp.tanh(jnp.tanh(jnp.tanh(x)))
    opened = bp.explain(lambda x: jnp.sum(layers(x)), x)
    explanation = bp.explain(lambda x: jnp.sum(jax.checkpoint(layers)(x)), x)
    assert sorted(opened.kept_bytes.values()) == [4000] * 3
    assert explanation.kept_bytes == {explanation.graph["x"]: 4000}
    assert [e.scope for e in explanation.graph if e.operation == "tanh"] == ["checkpoint"] * 3


def test_textbook_numbers() -> None:
    def neuron(w: Any, x: Any) -> Any:
        return 1.0 / (1.0 + jnp.exp(-(w[0] * x[0] + w[1] * x[1] + w[2])))

    explanation = bp.explain(neuron, [2.0, -3.0, -3.0], [-1.0, -2.0])
    bars = {name: round(float(bar), 2) for name, bar in explanation.cotangent.items()}
    given = {"w[0]": -0.20, "x[0]": 0.39, "w[1]": -0.39, "x[1]": -0.59, "w[2]": 0.20}
    assert {name: bars[name] for name in given} == given  # CS231n, the sigmoid example
    assert sorted({*bars.values()} - {*given.values()}) == [-0.53, 1.0]


def test_a_cotangent_of_a_tuple_says_which_output() -> None:
    def fun(x: Any) -> Any:
        h = bp.name(jnp.sin(x), "h")
        return {"a": h, "loss": jnp.sum(h * h), "n": 3}

    explanation = bp.explain(fun, X, cotangent={"a": None, "loss": 2.0, "n": None})
    np.testing.assert_allclose(explanation.cotangent["h"], 4.0 * jnp.sin(X), rtol=1e-12)
    assert explanation.cotangent["result['loss']"] == 2.0
    x_bar = bp.explain(fun, X, cotangent={"a": X, "loss": 0.0, "n": 1}).cotangent["x"]
    np.testing.assert_allclose(x_bar, X * jnp.cos(X), rtol=1e-12)
    assert explanation.value["result['n']"] == 3


def test_one_value_returned_twice_has_the_sum_of_both() -> None:
    def fun(x: Any) -> Any:
        y = bp.name(x * x, "y")
        return y, y

    explanation = bp.explain(fun, 3.0, cotangent=(1.0, 10.0))
    assert explanation.cotangent["y"] == 11.0 and explanation.cotangent["x"] == 66.0


def test_the_identity_and_a_constant() -> None:
    explanation = bp.explain(lambda x: x, 2.0)
    assert explanation.value["x"] == 2.0 and explanation.cotangent["x"] == 1.0
    explanation = bp.explain(lambda x: 3.0, 2.0)
    assert explanation.value["result"] == 3.0 and not explanation.cotangent


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_precisions(dtype: str) -> None:
    explanation = bp.explain(lambda x: jnp.sum(bp.name(x * x, "h")), X.astype(dtype))
    assert {str(explanation.cotangent[name].dtype) for name in ("x", "h", "result")} == {dtype}
    np.testing.assert_array_equal(explanation.cotangent["x"], 2 * X.astype(dtype))


def test_keys_integers_and_booleans_have_values_and_no_cotangents() -> None:
    def fun(key: Any, i: Any, x: Any) -> Any:
        return jnp.sum(jnp.where(jax.random.bernoulli(key, 0.5, (2,)), x[i], 0.0))

    explanation = bp.explain(fun, jax.random.key(1), jnp.array([0, 2]), X)
    assert explanation.value["i"].tolist() == [0, 2] and explanation.value["key"].shape == ()
    assert not {"i", "key"} & set(explanation.cotangent) and "x" in explanation.cotangent


def test_arguments_that_are_no_arrays_are_passed_on() -> None:
    explanation = bp.explain(lambda x, how: jnp.sum(x) if how == "sum" else x[0], X, "sum")
    assert set(explanation.cotangent) == {"x", "result"}


def test_an_unrolled_loop_has_the_value_of_every_step() -> None:
    def fun(w: Any, xs: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            return bp.name(jnp.tanh(w * h + x), "h"), None

        return lax.scan(step, 0.0, xs)[0]

    explanation = bp.explain(fun, 0.5, X, unroll=True)
    h = 0.0
    for name, x in zip(("h", "h_2", "h_3"), X):
        h = jnp.tanh(0.5 * h + x)
        np.testing.assert_allclose(explanation.value[name], h, rtol=1e-12)
    np.testing.assert_allclose(explanation.cotangent["xs"], jax.grad(fun, 1)(0.5, X), rtol=1e-12)
    with pytest.raises(UnknownVariableError, match="h stands inside a loop of fun"):
        bp.explain(fun, 0.5, X).value["h"]  # noqa: B018


def test_a_loop_of_unknown_length_wants_a_bound() -> None:
    loop = lambda x: lax.while_loop(lambda s: s < 9.0, lambda s: s * x, x)
    explanation = bp.explain(loop, 2.0, max_steps=5)
    assert explanation.value["result"] == 16.0 and explanation.cotangent["x"] == 32.0
    assert isinstance(explanation.kept_bytes, dict)
    with pytest.raises(bp.errors.MissingRuleError, match="max_steps"):
        bp.explain(loop, 2.0)


# Errors


@pytest.mark.parametrize(
    ("fun", "got"),
    [
        (lambda x: x * 2.0, "the output f64[3]"),
        (lambda x: (x[0], x[1]), "the output f64[], f64[]"),
        (lambda x: 3, "the output i64[]"),
        (lambda x: x[0] * 1j, "the output c128[]"),
        (lambda x: None, "the output ()"),
    ],
)
def test_no_single_gradient(fun: Any, got: str) -> None:
    with pytest.raises(bp.errors.NotDifferentiableError) as failure:
        bp.explain(fun, X)
    assert f"got:      {got}" in str(failure.value)
    assert "bp.explain(fun, *args, cotangent=y_bar)" in str(failure.value)


@pytest.mark.parametrize(
    ("cotangent", "got"),
    [
        ((X,), "f64[3]"),
        ((1.0, X), "float 1.0, f64[3]"),
        ((X, 1j), "f64[3], complex 1j"),
        ((None,) * 3, "None, None, None"),
        ((), "()"),
    ],
)
def test_a_cotangent_that_does_not_fit(cotangent: Any, got: str) -> None:
    with pytest.raises(bp.errors.CotangentError) as failure:
        bp.explain(lambda x: (x, jnp.sum(x)), X, cotangent=cotangent)
    assert f"got:      {got}\n  expected: f64[3], f64[]" in str(failure.value)


def test_names_that_are_not_there() -> None:
    explanation = bp.explain(lambda x, y: jnp.sum(bp.name(x * 2.0, "hidden")), X, X)
    with pytest.raises(UnknownVariableError, match=r"called hiden; near it: hidden"):
        explanation.value["hiden"]  # noqa: B018
    with pytest.raises(UnreachedError) as failure:
        explanation.cotangent["y"]  # noqa: B018
    said = "y has no cotangent: no path with a derivative leads to the output"
    assert str(failure.value) == said and "y" not in explanation.cotangent
    assert repr(explanation.cotangent) == "<3 arrays: x, hidden, result>"


@pytest.mark.parametrize(
    "transform",
    [jax.jit, jax.grad, lambda f: lambda x: jax.vmap(f)(x[None])],
)
def test_under_a_transform(transform: Any) -> None:
    square = lambda x: jnp.sum(x * x)
    with pytest.raises(NoValuesError, match="x has no value") as failure:
        transform(lambda x: bp.explain(square, x).value["result"])(X)
    assert "bp.cotangents works inside" in str(failure.value)
    with pytest.raises(NoValuesError, match="c has no value"):  # closed over
        transform(lambda c: bp.explain(lambda x: jnp.sum(x * c), X).value["result"])(X)


def test_at_a_shape() -> None:
    with pytest.raises(NoValuesError) as failure:
        bp.explain(jnp.sum, jax.ShapeDtypeStruct((3,), "float32"))
    assert "the shape f32[3]" in str(failure.value) and "jax.random" in str(failure.value)


def test_references_are_refused() -> None:
    def fun(x: Any) -> Any:
        cell = jax.new_ref(x)
        cell[...] = cell[...] * 2.0
        return cell[...]

    with pytest.raises(bp.errors.NotDifferentiableError, match="a mutable reference has no single"):
        bp.explain(fun, 2.0)
    assert bp.grad(fun)(2.0) == 2.0
