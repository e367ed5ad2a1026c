"""A layout divides what it says; training with it gives the numbers of one device."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from functional_bp import shard, train
from functional_bp.errors import TrainingError
from functional_bp.layouts.dimensions import UnknownDimensionError
from functional_bp.layouts.layout import Layout, LayoutError

ADAM = optax.adam(1e-2)
RNG = np.random.default_rng(5)


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "float32")


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


# Losses, each with its parameters, a batch, and a layout.


def mlp(params: Any, batch: Any) -> Any:
    x, y = batch
    hidden = jnp.tanh(x @ params["W1"] + params["b1"])
    return jnp.mean((hidden @ params["W2"] - y) ** 2)


def mlp_params(key: Any) -> Any:
    one, two = jax.random.split(key)
    return {
        "W1": jax.random.normal(one, (4, 16)),
        "b1": jnp.zeros(16),
        "W2": jax.random.normal(two, (16, 4)),
    }


MLP_BATCH = normal(16, 4), normal(16, 4)


def gpt_params(key: Any, depth: int = 2, width: int = 8, heads: int = 4, words: int = 16) -> Any:
    keys = iter(jax.random.split(key, 6))
    draw = lambda *shape: 0.3 * jax.random.normal(next(keys), shape)
    layers = {
        "qkv": draw(depth, 3, width, heads, 2), "out": draw(depth, heads, 2, width),
        "up": draw(depth, width, 32), "down": draw(depth, 32, width),
    }  # fmt: skip
    return {"embed": draw(words, width), "layers": layers, "head": draw(width, words)}


def gpt(params: Any, batch: Any, rng: Any = None) -> Any:
    x = params["embed"][batch["tokens"]]
    if rng is not None:
        x = x * jax.random.bernoulli(rng, 0.8, x.shape)
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))

    def layer(x: Any, p: Any) -> Any:
        q, k, v = jnp.einsum("btd,cdhk->cbhtk", x, p["qkv"])
        scores = jnp.where(mask, jnp.einsum("bhtk,bhsk->bhts", q, k), -1e9)
        x = x + jnp.einsum("bhts,bhsk,hkd->btd", jax.nn.softmax(scores), v, p["out"])
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    scores = jax.nn.log_softmax(x @ params["head"])
    return -jnp.mean(jnp.take_along_axis(scores, batch["next"][..., None], -1))


TOKENS = RNG.integers(0, 16, (4, 6))
GPT_BATCH = {"tokens": TOKENS, "next": np.roll(TOKENS, -1, 1)}
GPT = {"data": "batch", "model": ["up.2", "heads", "head.1"]}


def conv(params: Any, batch: Any) -> Any:
    x, labels = batch
    x = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME",
                                     dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
    scores = jax.nn.relu(x).mean((1, 2)) @ params["W"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def conv_params(key: Any) -> Any:
    one, two = jax.random.split(key)
    return {
        "kernel": jax.random.normal(one, (3, 3, 2, 8)), "W": jax.random.normal(two, (8, 3)),
    }  # fmt: skip


def table(params: Any, batch: Any) -> Any:
    users, items, ratings = batch
    return jnp.mean((jnp.sum(params["users"][users] * params["items"][items], -1) - ratings) ** 2)


def table_params(key: Any) -> Any:
    one, two = jax.random.split(key)
    return {
        "users": jax.random.normal(one, (64, 3)), "items": jax.random.normal(two, (32, 3)),
    }  # fmt: skip


CASES: dict[str, tuple[Any, Any, Any, dict[str, int], dict[str, Any]]] = {
    "perceptron": (mlp, mlp_params, MLP_BATCH, {"data": 4, "model": 2},
                   {"data": "batch", "model": "W1.1", "store": "data"}),
    "transformer": (gpt, gpt_params, GPT_BATCH, {"data": 2, "model": 4}, GPT),
    "convolution": (conv, conv_params, (normal(8, 6, 6, 2), RNG.integers(0, 3, 8)), {"data": 8},
                    {"data": "batch"}),
    "table": (table, table_params, (*RNG.integers(0, 32, (2, 12)), normal(12)), {"rows": 8},
              {"rows": ["users.0", "items.0"]}),
}  # fmt: skip


def laid_out(name: str) -> Layout:
    loss, make, batch, mesh, divided = CASES[name]
    dims = shard.dimensions(partial(loss), jax.eval_shape(make, jax.random.key(0)), batch)
    if name == "transformer":
        heads = dims.axes[[leaf.keys[-1] for leaf in dims.leaves].index("qkv")][3]
        dims = dims.rename({str(heads): "heads"})
    return shard.layout(mesh, dims, **divided)


def trained(name: str, layout: Layout | None) -> tuple[Any, Any]:
    loss, make, batch, _, _ = CASES[name]
    step = train.step(loss, ADAM, layout=layout, clip_norm=0.1, nonfinite="skip")
    state = train.init(make, ADAM, seed=1, layout=layout)
    logs: Any = {}
    for _ in range(3):
        state, logs = step(state, batch)
    assert step.compilations == 1
    return state, logs


@pytest.mark.parametrize("name", CASES)
def test_a_layout_gives_the_numbers_of_one_device(name: str) -> None:
    """Loss, norm of the gradient, parameters after three clipped steps of Adam."""
    layout = laid_out(name)
    (alone, expected), (state, found) = trained(name, None), trained(name, layout)
    assert expected["loss"] > 0 and not found["nonfinite"]
    for log in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[log], expected[log], rtol=1e-9)
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    jax.tree.map(close, state.params, alone.params)
    jax.tree.map(close, state.opt_state, alone.opt_state)
    assert [x.sharding for x in jax.tree.leaves(state)] == jax.tree.leaves(layout.of_tree(state))
