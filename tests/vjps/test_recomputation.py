"""What is computed again under ``jax.checkpoint`` is so only when its turn comes, on every JAX."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_bp as bp
from functional_bp import _jax
from functional_bp.engine import sweeps

LAYERS, ROWS, WIDTH, HIDDEN = 6, 512, 16, 128


def network(layer: Any) -> Any:
    def loss(params: Any, x: Any) -> Any:
        for k in range(LAYERS):
            x = layer(params[0][k], params[1][k], x)
        return jnp.mean(x * x)

    return loss


def layer(w: Any, v: Any, x: Any) -> Any:
    return x + jax.nn.gelu(x @ w) @ v


def inputs() -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda key, *shape: jax.random.normal(key, shape, jnp.float32) / 4
    params = draw(keys[0], LAYERS, WIDTH, HIDDEN), draw(keys[1], LAYERS, HIDDEN, WIDTH)
    return params, draw(keys[2], ROWS, WIDTH)


def temporaries(loss: Any) -> int:
    compiled: Any = jax.jit(bp.value_and_grad(loss)).lower(*inputs()).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_checkpointed_layers_written_one_by_one_need_one_layers_memory() -> None:
    """XLA on a CPU drops barriers in JAX 0.10: nothing was saved there, by JAX or by us."""
    plain, lean = temporaries(network(layer)), temporaries(network(jax.checkpoint(layer)))
    one = temporaries(network(lambda w, v, x: x))
    assert lean - one < 0.45 * (plain - one)


def test_gradients_are_the_same_numbers() -> None:
    found = jax.jit(bp.grad(network(jax.checkpoint(layer))))(*inputs())
    plain = jax.jit(bp.grad(network(layer)))(*inputs())
    chex.assert_trees_all_close(found, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_cotangent_that_is_no_number_does_not_spread(bad: float) -> None:
    """The tie reads a cotangent's first entry, whose value must not matter."""
    x, bars = jnp.arange(1.0, 5.0), jnp.asarray([bad, 1.0, 2.0, 3.0])
    fun = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))
    found, plain = (bp.vjp(f, x)[1](bars)[0] for f in (fun, lambda x: jnp.sin(jnp.sin(x))))
    assert not np.isfinite(found[0]) and np.isfinite(found[1:]).all()
    assert np.array_equal(found, plain, equal_nan=True)


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "int8"]
)
def test_a_tie_is_the_identity(dtype: str) -> None:
    for first in (0.0, -0.0, 1.5, np.inf, np.nan):
        tie = sweeps.tied_to([None, jnp.asarray([first, 2.0], "float32")])
        x = jnp.asarray([3, 0, -2], dtype)
        assert np.array_equal(jax.jit(tie)(x), x)
    tie = sweeps.tied_to([jnp.asarray(1 + 2j, "complex64")])
    assert np.array_equal(tie(jnp.ones(2, dtype)), jnp.ones(2, dtype))


def test_random_bits_are_drawn_again_alike() -> None:
    def loss(x: Any, key: Any) -> Any:
        return jnp.sum(jnp.sin(x * jax.random.normal(key, x.shape)) ** 2)

    given = jnp.arange(1.0, 5.0), jax.random.key(3)
    assert np.array_equal(bp.grad(jax.checkpoint(loss))(*given), bp.grad(loss)(*given))


def test_a_tie_cannot_be_seen_through() -> None:
    """On the JAX that needs it, what passed a tie is not merged with what did not."""
    if not _jax.DROPS_BARRIERS:
        pytest.skip("this JAX keeps barriers")

    def twice(x: Any, bar: Any) -> Any:
        return jnp.sin(x), jnp.sin(sweeps.tied_to([bar])(x))

    compiled = jax.jit(twice).lower(jnp.ones(8), jnp.ones(3)).compile()
    assert str(compiled.as_text()).count(" sine(") == 2


def test_where_values_vary_over_a_mesh_a_barrier_stands_for_the_tie() -> None:
    """One entry of a cotangent may not decide on what is the same on all devices."""
    mesh = jax.make_mesh((4,), ("rows",), (jax.sharding.AxisType.Auto,))
    fun = jax.checkpoint(lambda w, x: jnp.tanh(jnp.sin(x @ w)))
    w, x = jnp.ones((3, 3)) / 3, jnp.arange(24.0).reshape(8, 3)

    def shard(w: Any, x: Any) -> Any:
        return jax.lax.pmean(jnp.mean(fun(w, x)), "rows")

    divided = jax.shard_map(shard, mesh=mesh, in_specs=(jax.P(), jax.P("rows")), out_specs=jax.P())
    expected = jax.jit(jax.grad(lambda w: jnp.mean(fun(w, x))))(w)
    chex.assert_trees_all_close(jax.jit(bp.grad(divided))(w, x), expected, rtol=1e-6)
    explicit = jax.make_mesh((4,), ("rows",), (jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(explicit):
        rows = jax.device_put(x, jax.NamedSharding(explicit, jax.P("rows", None)))
        whole = jax.device_put(w, jax.NamedSharding(explicit, jax.P()))
        found = jax.jit(bp.grad(lambda w: jnp.sum(fun(w, rows)) / 24))(whole)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
