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
from sampling import sampled

from functional_bp import shard, train
from functional_bp.errors import NonFiniteError, TrainingError
from functional_bp.layouts.dimensions import UnknownDimensionError
from functional_bp.layouts.layout import Layout, LayoutError

ADAM = optax.adam(1e-2)
RNG = np.random.default_rng(5)


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


@pytest.mark.parametrize("name", sampled(CASES, 3))
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


# What lies where.


def test_arguments_are_exactly_a_share() -> None:
    layout = laid_out("table")
    state = train.init(table_params, ADAM, layout=layout)
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        whole = leaf.nbytes if leaf.ndim else 8 * leaf.nbytes
        assert [x.data.nbytes for x in leaf.addressable_shards] == [whole // 8] * 8
    words = str(layout)
    assert words.startswith("8 devices: users.0 and items.0 over rows (8)\n")
    assert layout.dimensions is not None
    whole, users = layout.table().lines[-1].cells[3].text, layout.table().lines[1].cells
    assert [c.text for c in users[2:]] == ["users.0 over rows", "1.5 KiB", "192 B"]
    assert whole == "2.5 KiB" and layout.bytes_per_device() == (64 + 32) * 3 * 8 // 8 + 3 * 12 * 8


def test_store_divides_what_is_whole_otherwise() -> None:
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
    params = {"W1": f32(4, 16), "b1": f32(16), "W2": f32(16, 4), "odd": f32(3, 5)}
    dims = shard.dimensions(lambda p, b: mlp(p, b) + p["odd"].sum(), params, (f32(8, 4), f32(8, 4)))
    mesh = {"data": 4, "model": 2}
    layout = shard.layout(mesh, dims, data="batch", model="W1.1", store="data")
    stored = {"W1": P("data", "model"), "W2": P("model", "data"), "b1": P(("model", "data")),
              "odd": P()}  # fmt: skip
    assert layout.specs() == [*(stored[k] for k in sorted(stored)), P("data"), P("data")]
    state = jax.eval_shape(lambda p: train.init(p, ADAM), params)
    specs = jax.tree.map(lambda s: s.spec, layout.of_tree(state))
    assert specs.params == specs.opt_state[0].mu == specs.opt_state[0].nu == stored
    assert specs.step == specs.rng == specs.opt_state[0].count == P()
    unbound = shard.layout(8, data="batch", store="data")
    assert unbound.of_tree(params)["W1"].spec == P(None, "data")
    assert unbound != shard.layout(8, data="batch")
    assert hash(unbound) == hash(shard.layout(jax.devices(), data="batch", store="data"))


def test_a_dimension_has_every_name_of_its_axes() -> None:
    params = jax.eval_shape(mlp_params, jax.random.key(0))
    dims = shard.dimensions(mlp, params, MLP_BATCH)
    mesh = {"model": 2}
    one, other = shard.layout(mesh, dims, model="W1.1"), shard.layout(mesh, dims, model="b1.0")
    assert one.specs() == other.specs() == [P(None, "model"), P("model"), P("model"), P(), P()]
    hidden = shard.layout(mesh, dims.rename({"W1.1": "hidden"}), model="hidden")
    assert hidden.specs() == one.specs()


def test_a_layout_is_over_a_mesh_of_any_kind() -> None:
    mesh = jax.make_mesh((2, 2), ("a", "b"), devices=jax.devices()[4:])
    assert [d.id for d in shard.layout(mesh, a="batch").mesh.devices.flat] == [4, 5, 6, 7]
    chosen = shard.layout({"a": 2}, devices=jax.devices()[6:], a="batch")
    assert [d.id for d in chosen.mesh.devices.flat] == [6, 7]
    assert set(shard.layout(mesh, a="batch").mesh.axis_types) == {jax.sharding.AxisType.Auto}


# Errors.

DIMS = shard.dimensions(mlp, jax.eval_shape(mlp_params, jax.random.key(0)), MLP_BATCH)
WIDE = {"data": 4, "model": 2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shard.layout({"data": 3}, DIMS, data="batch"),
         "3 devices cannot share the dimension 'batch' evenly\n.*at: .*batch.0..0\n.*size 16 over "
         "data\n.*a multiple of 3: 15 or 18\n.*pad it to 18 .*\n.*divide it by 2, 4, 8 or 16"),
        (lambda: shard.layout(WIDE, DIMS, data="batch", model="W1.2"),
         "no dimension 'W1.2'\n.*one of W1.1"),
        (lambda: shard.layout(WIDE, modle="batch"), "no axis 'modle'\n.*one of model"),
        (lambda: shard.layout(WIDE, store="dta"), "no axis 'dta'\n.*one of data"),
        (lambda: shard.layout({"data": 8, "model": 2}, data="batch"),
         "does not fit the devices\n.*8 × 2 = 16 devices\n.*at most 8"),
        (lambda: shard.layout({"data": 0}, data="batch"), "does not fit the devices\n.*data: 0"),
        (lambda: shard.layout(8, data="batch", model="W1.1"),
         "several mesh axes\n.*8 devices for data and model\n.*the size of each axis"),
        (lambda: shard.layout(WIDE, model="W1.1").specs(), "does not know the axes"),
        (lambda: train.init(mlp_params, ADAM, layout=shard.layout(WIDE, model="W1.1")),
         "does not know the axes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises((LayoutError, UnknownDimensionError), match=message):
        make()


def test_devices_of_two_kinds_are_refused() -> None:
    class Another:
        platform, device_kind, process_index, id = "tpu", "v5", 0, 99

    mixed = np.array([jax.devices()[0], Another()], dtype=object)
    mesh = jax.sharding.Mesh(mixed, ("data",))
    with pytest.raises(LayoutError, match="several kinds\n.*cpu cpu, tpu v5"):
        shard.layout(mesh, data="batch")


# Training.


def test_a_layout_by_names_alone_learns_them_from_the_first_batch() -> None:
    layout = shard.layout({"model": 8}, model="W1.1")
    params = mlp_params(jax.random.key(0))
    step = train.step(mlp, ADAM, layout=layout)
    state, _ = step(train.init(params, ADAM), MLP_BATCH)
    assert state.params["W1"].sharding.spec == P(None, "model")
    assert state.opt_state[0].mu["b1"].sharding.spec == P("model")
    with pytest.raises(UnknownDimensionError, match="no dimension 'W9.1'"):
        train.fit(mlp, params, MLP_BATCH, optimizer=ADAM, verbose=0,
                  layout=shard.layout({"model": 8}, model="W9.1"))  # fmt: skip


def test_state_is_made_of_a_key_or_of_arrays() -> None:
    """The parameters are those that the function returns for the key."""
    layout = laid_out("perceptron")
    made, expected = (
        train.init(mlp_params, ADAM, seed=7, layout=layout),
        mlp_params(jax.random.key(7)),
    )
    given = train.init(jax.tree.map(np.asarray, expected), ADAM, seed=7, layout=layout)
    for state in (made, given):
        jax.tree.map(np.testing.assert_array_equal, state.params, expected)
        assert state.params["W1"].sharding.spec == P("data", "model")
    assert not np.array_equal(jax.random.key_data(made.rng), jax.random.key_data(given.rng))


def fitted(layout: Layout | None, folder: Any = None, epochs: int = 3, **more: Any) -> Any:
    x = np.linspace(-1, 1, 96).reshape(24, 4)
    model = lambda p, x: jnp.tanh(x @ p["W1"] + p["b1"]) @ p["W2"]
    return train.fit(
        train.supervised(model, "mse"), mlp_params(jax.random.key(1)), x, x**2, optimizer=ADAM,
        batch_size=8, epochs=epochs, verbose=0, layout=layout, validation_split=0.25,
        checkpoints=folder, **more,
    )  # fmt: skip


@pytest.mark.long
def test_fit_evaluates_and_predicts_by_a_layout_and_goes_on_under_another(tmp_path: Any) -> None:
    """Four devices save after an epoch, eight go on, two end; and one alone gives the same."""
    expected, history = fitted(None)
    two_axes = lambda data, model: shard.layout(
        {"data": data, "model": model}, data="batch", model="W1.1", store="data"
    )
    fitted(two_axes(2, 2), tmp_path, epochs=1)
    fitted(two_axes(2, 4), tmp_path, epochs=2)
    state, resumed = fitted(layout := two_axes(1, 2), tmp_path)
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    jax.tree.map(close, state.params, expected.params)
    jax.tree.map(close, state.opt_state, expected.opt_state)
    close(resumed["val_loss"], history["val_loss"])
    assert state.params["W1"].sharding.shard_shape((4, 16)) == (4, 8)
    x = np.linspace(-2, 2, 80).reshape(20, 4)
    model = train.supervised(lambda p, x: x @ p["W1"], "mse")
    close(train.predict(model, state, x, batch_size=8, layout=layout), x @ expected.params["W1"])
    y = np.zeros((20, 16))
    found = train.evaluate(model, state, x, y, batch_size=8, layout=layout)
    close(found["loss"], train.evaluate(model, expected, x, y, batch_size=8)["loss"])


def test_fit_is_given_devices_once_and_batches_that_they_share() -> None:
    with pytest.raises(TrainingError, match="the devices are given twice"):
        fitted(shard.layout(2, data="batch"), devices=2)
    with pytest.raises(TrainingError, match="cannot share a batch evenly"):
        fitted(shard.layout(3, data="batch"))


def test_the_step_that_is_not_finite_is_found() -> None:
    x = np.ones((16, 4))
    x[9] = -1
    loss = lambda params, batch: mlp(params, batch) + jnp.mean(jnp.log(batch[0]))
    with pytest.raises(NonFiniteError, match="step 1"):
        train.fit(loss, mlp_params, (x, x), optimizer=ADAM, batch_size=8, shuffle=False, verbose=0,
                  layout=shard.layout(8, data="batch", store="data"))  # fmt: skip


def test_microbatches_are_divided_too() -> None:
    layout = laid_out("perceptron")
    steps = [train.step(mlp, ADAM, accumulate=2, layout=x) for x in (None, layout)]
    states = [step(train.init(mlp_params, ADAM, layout=step.options.layout), MLP_BATCH)[0]
              for step in steps]  # fmt: skip
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    jax.tree.map(close, states[1].params, states[0].params)


def test_a_program_may_need_less_on_each_device() -> None:
    """``lower`` takes shapes: nothing is made, and the compiled arguments are an eighth."""
    layout = laid_out("table")
    state = jax.eval_shape(lambda: train.init(table_params, ADAM))
    needs = []
    for chosen in (None, layout):
        step = train.step(table, ADAM, layout=chosen)
        found = step.lower(state, CASES["table"][2]).compile().memory_analysis()
        needs.append(found.argument_size_in_bytes)
    batch, small = 3 * 12 * 8, 8 + 4 + 4  # the key, two counts
    assert needs[1] - batch - small == (needs[0] - batch - small) // 8
