"""``custom_vjp`` and ``checkpoint`` in the form that JAX's flags ``jax_custom_vjp3`` and
``jax_remat3`` give them: ``call_hi_primitive`` stands for both, against ``jax.grad``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from sampling import sampled

import functional_bp as bp

FLAGS = ("jax_custom_vjp3", "jax_remat3")
X = jnp.array([0.3, -0.7, 1.1])
W = jnp.array([[0.5, -0.3, 0.2], [0.1, 0.9, -0.4], [-0.6, 0.3, 0.8]])


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    """Both flags, in the versions of JAX that have them and not yet as their only way."""
    before = {flag: getattr(jax.config, flag) for flag in FLAGS if hasattr(jax.config, flag)}
    for flag in before:
        jax.config.update(flag, True)
    yield
    for flag, value in before.items():
        jax.config.update(flag, value)


def scaled_sine() -> Any:
    """x sin y, its cotangent in y 2.5 times too large, so that only its author's rule gives it."""

    @jax.custom_vjp
    def function(x: Any, y: Any) -> Any:
        return x * jnp.sin(y)

    function.defvjp(
        lambda x, y: (x * jnp.sin(y), (x, y)),
        lambda kept, bar: (bar * jnp.sin(kept[1]), 2.5 * bar * kept[0] * jnp.cos(kept[1])),
    )
    return function


def two_outputs() -> Any:
    """A tree in, with integers, and a tree out."""

    @jax.custom_vjp
    def function(tree: Any) -> Any:
        return {"product": tree["x"] * tree["y"], "index": tree["i"], "sum": tree["x"] + tree["y"]}

    def backward(kept: Any, bar: Any) -> Any:
        x_bar = bar["product"] * kept["y"] + bar["sum"]
        return ({"x": x_bar, "y": 3 * bar["product"] * kept["x"] + bar["sum"], "i": None},)

    function.defvjp(lambda tree: (function(tree), tree), backward)
    return lambda x, y: function({"x": x, "y": y, "i": jnp.arange(3)})


def dense(x: Any, w: Any) -> Any:
    return jnp.tanh(checkpoint_name(jnp.tanh(x @ w), "hidden") @ w)


POLICIES = {
    "none": None,
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "everything": jax.checkpoint_policies.everything_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("hidden"),
}


def functions() -> dict[str, Any]:
    """Functions of a vector and a matrix; made inside a test, because flags act on decoration."""
    f, tree = scaled_sine(), two_outputs()
    steps = jnp.arange(3.0)
    made = {
        "custom": lambda x, w: f(x, w @ x),
        "one operand": lambda x, w: f(X, w @ x),
        "jitted": lambda x, w: jax.jit(f)(x, w @ x),
        "one of two outputs": lambda x, w: tree(x, w @ x)["product"],
        "mapped": lambda x, w: jax.vmap(f, (None, 0))(x, w),
        "scanned": lambda x, w: lax.scan(lambda c, t: (f(c, w @ c), f(c, c * t)), x, steps)[1],
        "nested": lambda x, w: f(f(x, x), w @ x),
        "checkpoint of custom": lambda x, w: jax.checkpoint(lambda v: jnp.sin(f(v, w @ v)))(x),
        "checkpoint of checkpoint": lambda x, w: jax.checkpoint(jax.checkpoint(dense))(x, w),
        "scan of checkpoint": lambda x, w: lax.scan(
            jax.checkpoint(lambda c, t: (jnp.tanh(w @ c + t), jnp.sum(c))), x, steps
        )[0],
        "mapped checkpoint": lambda x, w: (
            jax.vmap(jax.checkpoint(lambda v: jnp.tanh(w @ jnp.tanh(v))))(w) + x
        ),
    }
    for name, policy in POLICIES.items():
        checkpointed = jax.checkpoint(dense, policy=policy)
        made[f"checkpoint, policy {name}"] = lambda x, w, c=checkpointed: jax.jit(c)(x, w)
    return made


def weighted(function: Any) -> Any:
    """A scalar of the function's output in which no two elements are alike."""

    def scalar(x: Any, w: Any) -> Any:
        y = function(x, w)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=float).reshape(y.shape)))

    return scalar


@pytest.mark.parametrize("name", sampled(sorted(functions()), 3))
def test_gradients_are_those_of_jax(name: str) -> None:
    scalar = weighted(functions()[name])

    def slopes(package: Any, x: Any, w: Any) -> Any:
        once = package.grad(scalar, (0, 1))(x, w)
        size = lambda x, w: jnp.sum(package.grad(scalar, 0)(x, w) ** 2)
        return once, package.grad(size, (0, 1))(x, w)

    got, want = (jax.jit(lambda x, w, p=p: slopes(p, x, w))(X, W) for p in (bp, jax))
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    chex.assert_trees_all_close(got, want, rtol=1e-11, atol=1e-12)
    chex.assert_trees_all_close(bp.grad(scalar, (0, 1))(X, W), want[0], rtol=1e-11, atol=1e-12)


def products(function: Any) -> int:
    return str(jax.make_jaxpr(function)(X, W)).count("dot_general")


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_checkpoint_runs_again_what_its_policy_says(policy: str) -> None:
    scalar = weighted(jax.checkpoint(dense, policy=POLICIES[policy]))
    assert products(bp.grad(scalar)) <= products(jax.grad(scalar))


def test_a_checkpoint_is_swept_by_our_rules() -> None:
    """JAX has no reverse rule for a loop of unknown length; inside a checkpoint we have it too."""

    def looped(x: Any) -> Any:
        body = lambda carry: (carry[0] + 1, jnp.sin(carry[1]))
        return lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))[1]

    got = bp.grad(jax.checkpoint(looped), max_steps=4)(0.5)
    want = jax.grad(lambda x: jnp.sin(jnp.sin(jnp.sin(x))))(0.5)
    chex.assert_trees_all_close(got, want, rtol=1e-14)
