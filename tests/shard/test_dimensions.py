"""The dimensions of a loss are found without a word from its author."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functional_bp import shard


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "float32")


def i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "int32")


def mlp(params: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["W1"] + params["b1"])
    return jnp.mean((hidden @ params["W2"] - y) ** 2)


MLP = ({"W1": f32(4, 16), "b1": f32(16), "W2": f32(16, 4)}, f32(8, 4), f32(8, 4))


def test_axes_of_one_size_are_not_one_dimension() -> None:
    found = shard.dimensions(mlp, *MLP)
    assert found.axes == [
        ("x.1", "W1.1"), ("W1.1", "W2.1"), ("W1.1",), ("batch", "x.1"), ("batch", "W2.1"),
    ]  # fmt: skip
    assert [p.path for p in found["batch"].places] == ["x", "y"]
    assert found["batch"].size == 8 and found["W1.1"].sizes == (16,)
