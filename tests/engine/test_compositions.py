"""Our transforms inside and outside JAX's, up to three deep, against the same in JAX alone."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from measuring import as_scalar, compiled
from sampling import sampled

import functional_bp as bp

# The same mathematics, three derivatives deep at most, on numbers of size one.
TOLERANCE = 1e-10

X = jnp.array([0.4, -0.7, 1.1])
WEIGHTS = jnp.array([[0.5, -0.3, 0.2], [0.1, 0.9, -0.4], [-0.6, 0.3, 0.8]])


def perceptron(x: Any) -> Any:
    """Two dense layers with a relu between them."""
    return jnp.sum(jnp.tanh(WEIGHTS @ jax.nn.softplus(WEIGHTS.T @ x)) * x)


def recurrent(x: Any) -> Any:
    """A scan that carries a state and stacks outputs."""
    step = lambda h, t: (jnp.tanh(WEIGHTS @ h + t * x), jnp.sum(h**2))
    last, sizes = lax.scan(step, x, jnp.array([0.5, 1.0]))
    return jnp.sum(last) + jnp.sum(sizes)


def branching(x: Any) -> Any:
    """A cond, an indexed update and a custom rule (logsumexp, relu)."""
    y = lax.cond(x[0] > 0, lambda x: jnp.sin(x) * x[1], jnp.cos, x)
    return jax.nn.logsumexp(y.at[1].multiply(2.0)) + jnp.sum(jax.nn.silu(y) ** 2)


MODELS: dict[str, Callable[[Any], Any]] = {
    "perceptron": perceptron,
    "recurrent": recurrent,
    "branching": branching,
}

# Each takes a function of a vector to one of a vector's or scalar's derivative; the first argument
# is the package that it is taken from: ours or JAX.
Derivative = Callable[[Any, Callable[[Any], Any]], Callable[[Any], Any]]


def pulled(package: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """x̄ for a cotangent without equal elements."""

    def call(x: Any) -> Any:
        out, pullback = package.vjp(as_scalar(function), x)
        return pullback(out * 0 + 1.5)[0]

    return call


def pushed(package: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: package.jvp(as_scalar(function), (x,), (jnp.cos(x),))


def linearized(package: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(x: Any) -> Any:
        out, pushforward = package.linearize(as_scalar(function), x)
        return out + pushforward(jnp.cos(x))

    return call


DERIVATIVES: dict[str, Derivative] = {
    "grad": lambda package, f: package.grad(as_scalar(f)),
    "value_and_grad": lambda package, f: package.value_and_grad(as_scalar(f)),
    "vjp": pulled,
    "jvp": pushed,
    "linearize": linearized,
    "jacrev": lambda package, f: package.jacrev(lambda x: jax.tree.leaves(f(x))[0]),
    "jacfwd": lambda package, f: package.jacfwd(lambda x: jax.tree.leaves(f(x))[0]),
    "hessian": lambda package, f: package.hessian(as_scalar(f)),
}


def scanned(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: lax.scan(lambda c, k: (c, function(k * x)), 0.0, jnp.array([1.0, 0.5]))[1]


def switched(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    other = lambda x: jax.tree.map(jnp.zeros_like, function(x))
    return lambda x: lax.cond(jnp.sum(x) < 99, function, other, x)


def sharded(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    local = lambda x: jax.tree.map(lambda y: y[None], function(x[0]))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    return lambda x: mapped(jnp.stack([x, 0.5 * x]))


SURROUNDINGS: dict[str, Callable[[Callable[[Any], Any]], Callable[[Any], Any]]] = {
    "nothing": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, 0.5 * x])),
    "scan": scanned,
    "cond": switched,
    "remat": jax.checkpoint,
    "shard_map": sharded,
    "jax.grad": lambda f: jax.grad(as_scalar(f)),
    "jax.jvp": lambda f: lambda x: jax.jvp(as_scalar(f), (x,), (jnp.cos(x),)),
}


def agree(ours: Callable[[Any], Any], theirs: Callable[[Any], Any]) -> None:
    got, want = compiled(lambda x: (ours(x), theirs(x)))(X)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    chex.assert_trees_all_close(got, want, rtol=TOLERANCE, atol=TOLERANCE)
    assert any(jnp.any(y != 0) for y in jax.tree.leaves(want))


class Recorded:
    """``functional_bp``, with the function recorded rather than staged, inside ``jit`` too."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(bp, name)
        takes = "staged" in inspect.signature(function).parameters
        return functools.partial(function, staged=False) if takes else function


WAYS: dict[str, Any] = {"staged": bp, "recorded": Recorded()}

# Steps of 23 and 44 in rows of 18 meet every derivative, every surrounding and both ways.
TRIPLES = list(itertools.product(DERIVATIVES, SURROUNDINGS, WAYS))


@pytest.mark.parametrize(("derivative", "surrounding", "way"), sampled(TRIPLES, 23))
def test_derivative_inside_a_transform(derivative: str, surrounding: str, way: str) -> None:
    take, around = DERIVATIVES[derivative], SURROUNDINGS[surrounding]
    agree(
        lambda x: [around(take(WAYS[way], model))(x) for model in MODELS.values()],
        lambda x: [around(take(jax, model))(x) for model in MODELS.values()],
    )


@pytest.mark.parametrize(("derivative", "surrounding", "way"), sampled(TRIPLES, 44))
def test_derivative_of_a_transform(derivative: str, surrounding: str, way: str) -> None:
    take, around = DERIVATIVES[derivative], SURROUNDINGS[surrounding]
    agree(
        lambda x: [take(WAYS[way], around(model))(x) for model in MODELS.values()],
        lambda x: [take(jax, around(model))(x) for model in MODELS.values()],
    )


FIRST = ["grad", "jvp", "jacrev", "jacfwd"]


@pytest.mark.parametrize(
    ("inner", "outer"), sampled(itertools.product([*FIRST, "hessian"], FIRST), 6)
)
def test_two_derivatives(inner: str, outer: str) -> None:
    """Ours of ours, ours of JAX's, and JAX's of ours all equal JAX's of JAX's."""
    first, second, recorded = DERIVATIVES[inner], DERIVATIVES[outer], WAYS["recorded"]
    want = second(jax, first(jax, perceptron))
    mixed = [(bp, bp), (bp, jax), (jax, bp), (recorded, bp), (bp, recorded)]
    agree(
        lambda x: [second(a, first(b, perceptron))(x) for a, b in mixed],
        lambda x: [want(x)] * len(mixed),
    )


@pytest.mark.parametrize(("model", "middle"), sampled(itertools.product(MODELS, SURROUNDINGS), 14))
def test_three_deep(model: str, middle: str) -> None:
    """grad of a transform of grad of grad, with the packages mixed at every level."""

    def nested(a: Any, b: Any, c: Any) -> Callable[[Any], Any]:
        inner = DERIVATIVES["grad"](a, DERIVATIVES["grad"](b, MODELS[model]))
        return DERIVATIVES["grad"](c, SURROUNDINGS[middle](inner))

    recorded = WAYS["recorded"]
    agree(
        lambda x: [nested(bp, bp, bp)(x), nested(bp, jax, bp)(x), nested(*[recorded] * 3)(x)],
        lambda x: [nested(jax, jax, jax)(x)] * 3,
    )


def test_a_wrong_gradient_would_be_noticed() -> None:
    class Wrong:
        @staticmethod
        def grad(function: Any) -> Any:
            return lambda x: jax.grad(function)(x) * (1 + 1e-8)

    take = DERIVATIVES["grad"]
    with pytest.raises(AssertionError):
        agree(take(Wrong, perceptron), take(jax, perceptron))
