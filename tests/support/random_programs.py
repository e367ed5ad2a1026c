"""Random well-typed JAX programs, from a seed: graphs that nobody would think of writing.

A program is built by drawing operations one after another. Each takes values from a pool (so that
values are used several times, or never), and puts its result back into it. Values stay between −3
and 3, and every operation is smooth on its domain there or has its kinks where chance does not
hit, so that two right derivatives agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Value = Any
Operation = Callable[[np.random.Generator, "Pool"], "Value | None"]


@dataclass
class Pool:
    """The values that a program has so far."""

    values: list[Value]
    integers: list[Value] = field(default_factory=list)

    def pick(
        self, rng: np.random.Generator, accept: Callable[[Value], bool] = lambda x: True
    ) -> Any:
        """One of the values that will do; later ones are likelier, so that programs get deep."""
        found = [x for x in self.values if accept(x)]
        if not found:
            return None
        return found[min(len(found) - 1, int(len(found) * rng.beta(2, 1)))]


def matrix(x: Value) -> bool:
    return x.ndim == 2


def nonscalar(x: Value) -> bool:
    return x.ndim >= 1 and x.size > 0


UNARY = [
    jnp.sin, jnp.cos, jnp.tanh, jnp.arctan, lax.logistic, lax.neg, jnp.square, jnp.abs,
    lambda x: jnp.exp(-x * x), lambda x: jnp.log(2 + x * x), lambda x: jnp.sqrt(1 + x * x),
    lambda x: lax.rsqrt(1 + x * x), lambda x: lax.erf(x), lambda x: 1 / (2 + jnp.cos(x)),
    lambda x: x**3, lambda x: jnp.expm1(x / 3), lambda x: lax.integer_pow(x, 2), jax.nn.relu,
    jax.nn.softplus, jax.nn.silu, jax.nn.gelu, lambda x: jnp.clip(x, -1.03, 1.07),
]  # fmt: skip
BINARY = [
    jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum, lambda x, y: x / (3 + y * y),
    jnp.arctan2, lambda x, y: jnp.power(2 + jnp.sin(x), y), lambda x, y: jnp.where(x > y, x, y * x),
    lambda x, y: x * lax.stop_gradient(y),
]  # fmt: skip
REDUCTIONS = [
    lambda x, axis: jnp.sum(x, axis), lambda x, axis: jnp.mean(x, axis),
    lambda x, axis: jnp.max(x, axis), lambda x, axis: jnp.prod(x, axis),
    lambda x, axis: jax.nn.logsumexp(x, axis), lambda x, axis: jnp.var(x, axis),
    lambda x, axis: jnp.min(x, axis),
]  # fmt: skip
SAME_SHAPE = [
    lambda x, axis: jnp.cumsum(x, axis), lambda x, axis: jnp.cumprod(x, axis),
    lambda x, axis: jnp.sort(x, axis), lambda x, axis: jnp.flip(x, axis),
    lambda x, axis: jnp.roll(x, 1, axis), lambda x, axis: jax.nn.softmax(x, axis),
    lambda x, axis: lax.cummax(x, axis), lambda x, axis: x - jnp.mean(x, axis, keepdims=True),
]  # fmt: skip


def unary(rng: np.random.Generator, pool: Pool) -> Value:
    return UNARY[rng.integers(len(UNARY))](pool.pick(rng))


def binary(rng: np.random.Generator, pool: Pool) -> Value:
    """Two values whose shapes broadcast."""
    x = pool.pick(rng)

    def fits(y: Value) -> bool:
        try:
            return np.prod(np.broadcast_shapes(x.shape, y.shape)) <= 64
        except ValueError:
            return False

    return BINARY[rng.integers(len(BINARY))](x, pool.pick(rng, fits))


def reduction(rng: np.random.Generator, pool: Pool) -> Value:
    x = pool.pick(rng, nonscalar)
    if x is None:
        return None
    axis = None if rng.random() < 0.2 else int(rng.integers(-x.ndim, x.ndim))
    return REDUCTIONS[rng.integers(len(REDUCTIONS))](x, axis)


def along_axis(rng: np.random.Generator, pool: Pool) -> Value:
    x = pool.pick(rng, nonscalar)
    return (
        None
        if x is None
        else SAME_SHAPE[rng.integers(len(SAME_SHAPE))](x, int(rng.integers(x.ndim)))
    )


def product(rng: np.random.Generator, pool: Pool) -> Value:
    """A matrix product, contracted over whichever axes agree."""
    x = pool.pick(rng, nonscalar)
    if x is None:
        return None
    y = pool.pick(rng, lambda y: y.ndim >= 1 and y.shape[0] == x.shape[-1] and y.ndim <= 2)
    return None if y is None or x.size * y.size > 400 else jnp.tensordot(x, y, 1) / x.shape[-1]


def reshaping(rng: np.random.Generator, pool: Pool) -> Value:
    x = pool.pick(rng, nonscalar)
    if x is None:
        return None
    choice = rng.integers(5)
    if choice == 0:
        return jnp.transpose(x, rng.permutation(x.ndim))
    if choice == 1:
        return jnp.reshape(x, (-1,))
    if choice == 2:
        return jnp.expand_dims(x, int(rng.integers(x.ndim + 1))) if x.ndim < 3 else jnp.squeeze(x)
    if choice == 3:
        return jnp.broadcast_to(x, (2, *x.shape)) if x.size <= 16 and x.ndim < 3 else x.T
    return jnp.stack([x, x * 0.5])[int(rng.integers(2))]


def slicing(rng: np.random.Generator, pool: Pool) -> Value:
    x = pool.pick(rng, nonscalar)
    if x is None:
        return None
    n, choice = x.shape[0], rng.integers(7)
    if choice == 0:
        return x[int(rng.integers(n))]
    if choice == 1:
        return x[:: int(rng.integers(1, 3))]
    if choice == 2:
        return lax.dynamic_slice_in_dim(x, pool.integers[0] % n, 1)
    if choice == 3:
        return jnp.take(x, pool.integers[1] % n, axis=0)
    if choice == 4:
        return x.at[pool.integers[0] % n].set(0.5)
    if choice == 5:
        return x.at[pool.integers[1] % n].add(x[0])
    return jnp.pad(x, [(1, 0)] + [(0, 0)] * (x.ndim - 1)) if x.size < 32 else x[-1]


def joining(rng: np.random.Generator, pool: Pool) -> Value:
    x = pool.pick(rng, nonscalar)
    if x is None:
        return None
    y = pool.pick(rng, lambda y: y.ndim == x.ndim and y.shape[1:] == x.shape[1:])
    return jnp.concatenate([x, y]) if x.size + y.size <= 48 else x[: x.shape[0] // 2 + 1]


def small_function(rng: np.random.Generator) -> Callable[[Value], Value]:
    """Two elementwise operations in a row, for the inside of control flow."""
    first, second = (UNARY[rng.integers(len(UNARY))] for _ in range(2))
    return lambda x: first(0.8 * second(x))


def control_flow(rng: np.random.Generator, pool: Pool) -> Value:
    x, inner, other = pool.pick(rng), small_function(rng), small_function(rng)
    choice = rng.integers(8)
    if choice == 0:
        return lax.cond(jnp.sum(x) > 0.013, inner, other, x)
    if choice == 1:
        return lax.switch(pool.integers[0] % 3, [inner, other, lambda x: x * 2], x)
    if choice == 2:
        return lax.scan(lambda c, _: (jnp.tanh(inner(c) + x), None), x, length=3)[0]
    if choice == 3 and nonscalar(x):
        carried, stacked = lax.scan(lambda c, row: (inner(c) * 0.5 + row, c * row), x[0], x)
        return stacked if rng.random() < 0.5 else carried
    if choice == 4:
        return lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) + inner(x) * i, x)
    if choice == 5:
        return jax.jit(lambda y: inner(y) * other(x))(x)
    if choice == 6:
        return jax.checkpoint(lambda y: inner(y) + other(y))(x)
    return jax.vmap(inner)(x) if nonscalar(x) else _clipped_slope(x)


@jax.custom_vjp
def _clipped_slope(x: Value) -> Value:
    return jnp.sin(x)


_clipped_slope.defvjp(
    lambda x: (jnp.sin(x), x), lambda x, y_bar: (y_bar * jnp.clip(jnp.cos(x), -0.5, 0.5),)
)


OPERATIONS: list[tuple[Operation, int]] = [
    (unary, 5), (binary, 6), (reduction, 2), (along_axis, 2), (product, 2), (reshaping, 2),
    (slicing, 2), (joining, 1), (control_flow, 3),
]  # fmt: skip


def arguments(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Float arguments of random small shapes, and integers: one number and one vector."""
    rng = np.random.default_rng([seed, 1])
    shapes = [tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 3))) for _ in range(3)]
    return [rng.uniform(-1.5, 1.5, s) for s in shapes], [rng.integers(0, 5), rng.integers(0, 5, 2)]


def program(seed: int, longest: int = 10) -> Callable[..., list[Value]]:
    """A function of ``arguments(seed)`` that returns the program's last few values."""

    def run(floats: list[Value], integers: list[Value]) -> list[Value]:
        rng = np.random.default_rng([seed, 2])
        pool = Pool([jnp.asarray(x) for x in floats], [jnp.asarray(n) for n in integers])
        weights = np.array([weight for _, weight in OPERATIONS], float)
        made: list[Value] = []
        length = int(rng.integers(3, longest + 1))
        while len(made) < length:
            operation = OPERATIONS[rng.choice(len(OPERATIONS), p=weights / weights.sum())][0]
            y = operation(rng, pool)
            if y is None:
                continue
            y = 3 * jnp.tanh(y / 3)  # keeps values where all operations are smooth
            pool.values.append(y)
            made.append(y)
        count = int(rng.integers(1, 4))
        return made[-count:]

    return run
