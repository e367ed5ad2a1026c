"""``bp.orders`` tells what derivatives take, order by order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_bp as bp
from functional_bp.memory.footprint import FootprintError
from functional_bp.memory.orders import _derivative

F = jnp.float32


def objective(weights: Any, x: Any) -> Any:
    return jnp.mean((jnp.tanh(x @ weights["W1"]) @ weights["W2"]) ** 2)


WEIGHTS = {"W1": jnp.ones((8, 32), F), "W2": jnp.ones((32, 4), F)}
X = jnp.ones((64, 8), F)
SHAPES: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (WEIGHTS, X))


def test_each_order_is_the_derivative_of_the_one_before() -> None:
    """Of x⁴ along v, entry by entry: 4 x³, 12 x² v, 24 x v²."""
    x, v = jnp.array([1.0, 2.0, -0.5]), jnp.array([1.0, 0.5, 3.0])
    quartic = lambda scale, x: scale * jnp.sum(x**4)
    expected = [jnp.sum(x**4), 4 * x**3, 12 * x**2 * v, 24 * x * v**2]
    for order, values in enumerate(expected):
        found = _derivative(quartic, order, 1)(v, 2.0, x)
        np.testing.assert_allclose(found, 2 * values, rtol=1e-6)


def test_the_table_tells_what_the_parts_do() -> None:
    found = bp.orders(objective, WEIGHTS, X, up_to=2)
    assert [made.order for made in found] == [0, 1, 2]
    for key in ("equations", "flops", "bytes"):
        amounts = [getattr(made, key) for made in found]
        assert amounts == sorted(set(amounts)), key
    both = bp.footprint(objective, WEIGHTS, X)
    gradient: Any = jax.jit(bp.grad(objective)).lower(WEIGHTS, X).compile()
    stats = gradient.memory_analysis()
    parts = stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes
    assert both.prediction and found[0].bytes == both.prediction.peak_bytes
    assert found[1].bytes == pytest.approx(sum(parts), rel=1e-3)  # constants are a few bytes
    assert all(made.run_seconds and made.compile_seconds > 0 for made in found)
    lines = str(found).splitlines()
    assert lines[0] == "Derivatives of objective" and len(lines) == 6 and "run in" in lines[1]
    assert "<table>" in found._repr_html_()


def test_of_shapes_nothing_runs() -> None:
    found = bp.orders(objective, *SHAPES, up_to=1)
    assert [made.run_seconds for made in found] == [None, None]
    assert "run in" not in str(found)
    swapped = bp.orders(lambda x, weights: objective(weights, x), *SHAPES[::-1], up_to=1, argnums=1)
    assert [made.bytes for made in swapped] == [made.bytes for made in found]


def test_errors_say_what_was_expected() -> None:
    with pytest.raises(FootprintError, match="no gradient to differentiate again"):
        bp.orders(jnp.sin, X)
    for up_to in (-1, 1.5, True):
        with pytest.raises(FootprintError, match="no order of a derivative"):
            bp.orders(objective, *SHAPES, up_to=up_to)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FootprintError, match="argnums"):
        bp.orders(objective, *SHAPES, argnums=3)
