"""The dimensions of a loss are found without a word from its author."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from functional_bp import shard
from functional_bp.engine.axes import Role
from functional_bp.layouts.dimensions import UnknownDimensionError


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "float32")


def i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "int32")


def mlp(params: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["W1"] + params["b1"])
    return jnp.mean((hidden @ params["W2"] - y) ** 2)


MLP = ({"W1": f32(4, 16), "W2": f32(16, 4), "b1": f32(16)}, f32(32, 4), f32(32, 4))


def test_axes_of_one_size_are_not_one_dimension() -> None:
    found = shard.dimensions(mlp, *MLP)
    assert found.axes == [
        ("x.1", "W1.1"), ("W1.1", "W2.1"), ("W1.1",), ("batch", "x.1"), ("batch", "W2.1"),
    ]  # fmt: skip
    assert [p.path for p in found["batch"].places] == ["x", "y"]
    assert found["batch"].size == 32 and found["W1.1"].sizes == (16,)


def test_the_bytes_behind_a_dimension_are_those_of_what_carries_it() -> None:
    found = shard.dimensions(mlp, *MLP)
    carrying = [
        v for v in found.graph.variables
        if v.kind == "intermediate" and "W1.1" in found.names_of(v)
    ]  # fmt: skip
    assert found["W1.1"].values == len(carrying) == 4  # x W₁, b₁ repeated, their sum, tanh
    assert found["W1.1"].bytes == sum(v.bytes for v in carrying)
    assert found["W1.1"].argument_bytes == 4 * (4 * 16 + 16 * 4 + 16)


B, T, D, H, F, V, L = 2, 6, 8, 2, 16, 11, 3


def transformer(params: Any, batch: Any) -> Any:
    x = params["embedding"][batch["tokens"]] + params["position"]

    def block(x: Any, p: Any) -> Any:
        q, k, v = (jnp.reshape(x @ p[n], (B, T, H, -1)) for n in ("wq", "wk", "wv"))
        scores = jnp.einsum("bthd,bshd->bhts", q, k)
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
        x = x + mixed.reshape(B, T, -1) @ p["wo"]
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], None

    x, _ = lax.scan(block, x, params["blocks"])
    logp = jax.nn.log_softmax(x @ params["head"])
    return -jnp.mean(jnp.take_along_axis(logp, batch["labels"][..., None], -1))


TRANSFORMER = (
    {
        "blocks": {
            "wq": f32(L, D, D), "wk": f32(L, D, D), "wv": f32(L, D, D), "wo": f32(L, D, D),
            "up": f32(L, D, F), "down": f32(L, F, D),
        },
        "embedding": f32(V, D), "position": f32(T, D), "head": f32(D, V),
    },
    {"tokens": i32(B, T), "labels": i32(B, T)},
)  # fmt: skip


def places(found: Any, name: str) -> set[str]:
    return {str(place).replace("params['blocks']", "").replace("params", "").replace("'", "")
            for place in found[name].places}  # fmt: skip


def test_a_scanned_transformer_has_the_dimensions_of_the_textbook() -> None:
    found = shard.dimensions(transformer, *TRANSFORMER).rename(
        {"wk.2": "heads", "up.2": "hidden", "head.1": "vocabulary", "labels.1": "time"}
    )
    assert places(found, "heads") == {"[wq].2", "[wk].2", "[wv].2", "[wo].1"}
    assert places(found, "hidden") == {"[up].2", "[down].1"}
    assert places(found, "layers") == {f"[{n}].0" for n in ("wq", "wk", "wv", "wo", "up", "down")}
    assert places(found, "vocabulary") == {"[head].1"}
    assert places(found, "time") == {"[position].0", "batch[tokens].1", "batch[labels].1"}
    assert found["heads"].sizes == (H, D)  # D is split into H heads, the major part
    assert found["time"].twice and not found["hidden"].twice  # scores of all positions with all
    assert Role.POSITIONAL in found["embedding.0"].uses
    widths = {"[embedding].1", "[position].1", "[head].0", "[down].2", "[wo].2", "[up].1"}
    assert places(found, found.axes[-3][1]) >= widths


def test_what_two_calls_of_one_function_are_given_stays_apart() -> None:
    layer = jax.jit(lambda x, w: jnp.tanh(x @ w))
    loss = lambda p, x: jnp.sum(layer(layer(x, p["a"]), p["b"]))
    found = shard.dimensions(loss, {"a": f32(4, 4), "b": f32(4, 4)}, f32(3, 4))
    assert found.axes == [("x.1", "a.1"), ("a.1", "b.1"), ("batch", "x.1")]


def test_a_residual_layer_has_one_dimension_twice() -> None:
    found = shard.dimensions(lambda w, x: jnp.sum(x + x @ w), f32(4, 4), f32(3, 4))
    assert found.axes == [("w.1", "w.1"), ("batch", "w.1")]
    assert found["w.1"].twice and "twice in an array" in found.text(120)
    assert found["w.1"].axis_of(0) == 0


def test_space_goes_on_through_convolutions_and_strides() -> None:
    def loss(params: Any, x: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(x, params["c"], (2, 2), "SAME", dimension_numbers=numbers)
        return jnp.mean(h**2)

    found = shard.dimensions(loss, {"c": f32(3, 3, 2, 5)}, f32(4, 8, 6, 2))
    assert found.axes == [("c.0", "c.1", "x.3", "c.3"), ("batch", "x.1", "x.2", "x.3")]
    assert found["x.1"].sizes == (4, 8) and list(found["x.1"].uses) == [Role.HALO, Role.SUMMED]


def test_points_that_are_compared_with_all_are_one_dimension_twice() -> None:
    def process(scale: Any, x: Any, y: Any) -> Any:
        distances = jnp.sum((x[:, None] - x[None]) ** 2, -1)
        factor = jnp.linalg.cholesky(jnp.exp(-scale * distances) + 0.1 * jnp.eye(len(x)))
        half = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        return half @ half + jnp.sum(jnp.log(jnp.diag(factor)))

    found = shard.dimensions(process, f32(), f32(7, 3), f32(7)).rename(batch="points")
    assert found.axes == [(), ("points", "x.1"), ("points",)]
    assert found["points"].twice and Role.MIXED in found["points"].uses


def test_dimensions_are_named_and_found_by_name() -> None:
    found = shard.dimensions(mlp, *MLP).rename({"x.1": "features"}, batch="examples")
    assert list(found) == ["examples", "W1.1", "W2.1", "features"]
    assert found["examples"].is_batch
    with pytest.raises(UnknownDimensionError, match=r"no dimension 'W1'\n.*one of W[12].1"):
        found["W1"]
    with pytest.raises(ValueError, match="two dimensions would be called 'examples'"):
        found.rename({"features": "examples"})


def test_names_of_nested_pytrees_begin_with_a_word_and_hold_what_tells_them_apart() -> None:
    """``params`` of Flax is around all others, ``net/~/linear`` of Haiku has parts."""

    def loss(params: Any, batch: Any) -> Any:
        (x, y), tower = batch, lambda p: p["params"]["Dense_0"]["kernel"]
        found = x @ tower(params["image"]) + y @ tower(params["text"])
        return jnp.mean((found @ params["net/~/linear"]["w"] @ params["layers"][1]) ** 2)

    tower = lambda *shape: {"params": {"Dense_0": {"kernel": f32(*shape)}}}
    params = {"image": tower(5, 4), "text": tower(6, 4), "net/~/linear": {"w": f32(4, 7)},
              "layers": [f32(2), f32(7, 3)]}  # fmt: skip
    found = shard.dimensions(loss, params, (f32(8, 5), f32(8, 6)))
    assert set(found) == {"batch", "image.kernel.1", "batch.0.1", "batch.1.1", "w.1",
                          "layers.1.1", "layers.0.0"}  # fmt: skip


def test_layers_that_are_alike_are_one_line() -> None:
    def loss(params: Any, x: Any) -> Any:
        for p in params["layers"]:
            x = x + jnp.tanh(x @ p["up"]) @ p["down"]
        return jnp.mean(x**2)

    layer = {"up": f32(4, 16), "down": f32(16, 4)}
    found = shard.dimensions(loss, {"layers": [layer] * 12}, f32(8, 4))
    assert len(found) == 14  # the width, the batch, and the hidden units of each layer
    lines = found.text(80).splitlines()[3:]
    assert len(lines) == 3 and sum("layers.0.up.1" in x and "12 × 16" in x for x in lines) == 1
    carried = sum(d.bytes + d.argument_bytes for n, d in found.items() if n.endswith("up.1"))
    assert any(f"{carried / 1024:.1f} KiB" in line for line in lines)


def test_they_print_as_a_table() -> None:
    found = shard.dimensions(mlp, *MLP)
    lines = found.text(100).splitlines()
    assert lines[0].strip() == "Dimensions of mlp"
    assert lines[3].split()[:4] == ["batch", "32", "x.0,", "y.0"] and "summed" in lines[3]
    assert found._repr_html_().count("<tr") == 5
    assert repr(found) == "<Dimensions of mlp: batch 32, W1.1 16, W2.1 4, x.1 4>"
