"""``train.models`` against loops over their equations in NumPy, and what time does to gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy import tanh

import functional_bp as bp
from functional_bp import train
from functional_bp.errors import TrainingError
from functional_bp.train.models import gpt, lenet, lstm, mlp, recurrent

# Everything here is in float64: a few hundred roundings of 1e-16 of numbers near 1.
TOLERANCE = {"rtol": 1e-11, "atol": 1e-12}
KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
CELLS = ["rnn", "lstm", "gru"]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def drawn(init: Any, *args: Any, **options: Any) -> Any:
    """Other numbers of the same shapes, so that no bias is zero and no gain one."""
    rng, params = np.random.default_rng(1), jax.eval_shape(lambda: init(KEY, *args, **options))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.4), params)


def arrays(params: Any) -> Any:
    return jax.tree.map(np.asarray, params)


def test_mlp_is_matrix_products_and_activations() -> None:
    params, x = drawn(mlp.init, [3, 5, 4, 2]), RNG.normal(size=(6, 3))
    p = arrays(params)
    h1 = np.maximum(x @ p["W1"] + p["b1"], 0)
    h2 = np.maximum(h1 @ p["W2"] + p["b2"], 0)
    np.testing.assert_allclose(mlp.apply(params, x), h2 @ p["W3"] + p["b3"], **TOLERANCE)
    one = drawn(mlp.init, [3, 2])
    with_tanh = mlp.apply(one, x, activation=jnp.tanh)  # one layer has no activation
    np.testing.assert_allclose(with_tanh, x @ one["W1"] + one["b1"], **TOLERANCE)


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Σ_{u v} x[i + u, j + v] K[u, v] wherever the kernel fits."""
    height, width = (x.shape[i + 1] - kernel.shape[i] + 1 for i in (0, 1))
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i : i + kernel.shape[0], j : j + kernel.shape[1]]
            out[:, i, j] = np.tensordot(patch, kernel, 3)
    return out


def pooled(x: np.ndarray) -> np.ndarray:
    out = np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    return out


@pytest.mark.parametrize("size", [pytest.param((12, 12), marks=pytest.mark.long), (15, 18)])
def test_lenet_is_two_convolutions_and_three_layers(size: tuple[int, int]) -> None:
    params = drawn(lenet.init, size, channels=1, classes=4)
    p, x = arrays(params), RNG.normal(size=(2, *size, 1))
    h = pooled(tanh(convolved(np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)]), p["K1"]) + p["b1"]))
    h = pooled(tanh(convolved(h, p["K2"]) + p["b2"])).reshape(2, -1)
    h = tanh(tanh(h @ p["W3"] + p["b3"]) @ p["W4"] + p["b4"])
    np.testing.assert_allclose(lenet.apply(params, x), h @ p["W5"] + p["b5"], **TOLERANCE)
    np.testing.assert_array_equal(lenet.apply(params, x[..., 0]), lenet.apply(params, x))


def looped(cell: str, p: Any, xs: np.ndarray) -> np.ndarray:
    """h_1, ..., h_T of one sequence, gate by gate."""
    m = p["U"].shape[0]
    h, c, out = np.zeros(m), np.zeros(m), []
    gate = lambda k: slice(k * m, (k + 1) * m)
    for x in xs:
        a = lambda k, h, x=x: x @ p["W"][:, gate(k)] + h @ p["U"][:, gate(k)] + p["b"][gate(k)]
        if cell == "rnn":
            h = tanh(a(0, h))
        elif cell == "lstm":
            c = sigmoid(a(1, h)) * c + sigmoid(a(0, h)) * tanh(a(2, h))
            h = sigmoid(a(3, h)) * tanh(c)
        else:
            z, r = sigmoid(a(0, h)), sigmoid(a(1, h))
            h = z * h + (1 - z) * tanh(a(2, r * h))
        out.append(h)
    return np.stack(out)


@pytest.mark.parametrize("unroll", [False, True], ids=["scan", "unrolled"])
@pytest.mark.parametrize("cell", CELLS)
def test_cells_over_time(cell: str, unroll: bool) -> None:
    params, xs = drawn(recurrent.init, cell, 3, 4), RNG.normal(size=(2, 6, 3))
    hs, state = recurrent.apply(params, xs, cell=cell, unroll=unroll)
    expected = np.stack([looped(cell, arrays(params), x) for x in xs])
    np.testing.assert_allclose(hs, expected, **TOLERANCE)
    np.testing.assert_array_equal(state[0], hs[:, -1])


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_goes_on_from_a_state(cell: str) -> None:
    params, xs = drawn(recurrent.init, cell, 3, 4), RNG.normal(size=(2, 6, 3))
    whole, last = recurrent.apply(params, xs, cell=cell)
    _, state = recurrent.apply(params, xs[:, :2], cell=cell)
    rest, end = recurrent.apply(params, xs[:, 2:], cell=cell, state=state)
    np.testing.assert_allclose(rest, whole[:, 2:], **TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), end, last)


def through_time(cell: str, **options: Any) -> tuple[Any, Any]:
    """The gradient of ½ Σ ‖h_t − target_t‖², and the parameters."""
    rng = np.random.default_rng(2)
    params = drawn(recurrent.init, cell, 3, 4)
    xs, target = rng.normal(size=(1, 5, 3)), rng.normal(size=(1, 5, 4))

    def loss(params: Any) -> Any:
        hs, _ = recurrent.apply(params, xs, cell=cell, **options)
        return 0.5 * jnp.sum((hs - target) ** 2)

    return jax.jit(bp.grad(loss))(params), (params, xs, target)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("window", [None, 2])
def test_the_unrolled_graph_has_the_gradient_of_the_scan(cell: str, window: int | None) -> None:
    scanned, _ = through_time(cell, window=window)
    unrolled, _ = through_time(cell, window=window, unroll=True)
    for name in scanned:
        np.testing.assert_allclose(scanned[name], unrolled[name], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("cell", CELLS)
def test_shared_weights_sum_over_their_uses(cell: str) -> None:
    # A copy of U for each step, the steps one after the other: the shares add up to U's gradient.
    whole, (params, xs, target) = through_time(cell)

    def loss(copies: Any) -> Any:
        state, total = None, 0.0
        for t, U in enumerate(copies):
            shared = {**params, "U": U}
            hs, state = recurrent.apply(shared, xs[:, t : t + 1], cell=cell, state=state)
            total += 0.5 * jnp.sum((hs[:, 0] - target[:, t]) ** 2)
        return total

    shares = jax.jit(jax.grad(loss))([params["U"]] * xs.shape[1])
    np.testing.assert_allclose(whole["U"], sum(shares), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("cell", CELLS)
def test_a_truncated_gradient_is_that_of_the_windows_alone(cell: str) -> None:
    truncated, (params, xs, target) = through_time(cell, window=2)
    whole, _ = through_time(cell)
    state, alone = None, jax.tree.map(np.zeros_like, whole)
    for start in (0, 2, 4):
        part = slice(start, start + 2)

        def loss(params: Any, state: Any = state, part: Any = part) -> Any:
            hs, end = recurrent.apply(params, xs[:, part], cell=cell, state=state)
            return 0.5 * jnp.sum((hs - target[:, part]) ** 2), end

        found, state = jax.jit(jax.grad(loss, has_aux=True))(
            params
        )  # of a state that is a constant
        alone = jax.tree.map(np.add, alone, found)
    for name in alone:
        np.testing.assert_allclose(truncated[name], alone[name], rtol=1e-10, atol=1e-11)
    assert np.max(np.abs(truncated["U"] - whole["U"])) > 1e-2


def test_lstm_reads_its_last_state() -> None:
    params, xs = drawn(lstm.init, 3, 4, 2), RNG.normal(size=(2, 6, 3))
    p = arrays(params)
    last = np.stack([looped("lstm", p, x)[-1] for x in xs])
    np.testing.assert_allclose(lstm.apply(params, xs), last @ p["V"] + p["d"], **TOLERANCE)


MODELS = {
    "mlp": (partial(mlp.init, sizes=[6, 8, 3]), mlp.apply, (12, 6)),
    "lenet": (partial(lenet.init, size=(12, 12), classes=3), lenet.apply, (12, 12, 12)),
    "lstm": (partial(lstm.init, inputs=4, units=8, outputs=3), lstm.apply, (12, 5, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_jax_s(name: str) -> None:
    init, model, shape = MODELS[name]
    params, x = drawn(init), RNG.normal(size=shape)
    loss = lambda params: jnp.mean(jnp.square(model(params, x)))
    ours, theirs = jax.jit(bp.grad(loss))(params), jax.jit(jax.grad(loss))(params)
    # Relative to a leaf's largest entry, since entries cancel.
    for leaf in params:
        scale = float(jnp.max(jnp.abs(theirs[leaf])))
        np.testing.assert_allclose(ours[leaf], theirs[leaf], rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.long
def test_models_learn_twelve_labels(name: str) -> None:
    init, model, shape = MODELS[name]
    x, y = np.random.default_rng(4).normal(size=shape).astype(np.float32), np.arange(12) % 3
    step = train.step(train.supervised(model, "cross_entropy", ["accuracy"]), optax.adam(0.02))
    state = train.init(jax.jit(init)(KEY), step.optimizer)
    for _ in range(100):
        state, logs = step(state, (x, y))
    assert float(logs["loss"]) < 0.1 < np.log(3) and float(logs["accuracy"]) == 1


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_first_weights_are_within_glorots_bound_and_fill_it(name: str) -> None:
    params = arrays({"mlp": mlp.init(KEY, [300, 200]), "lenet": lenet.init(KEY)}[name])
    for leaf in (leaf for key, leaf in params.items() if key[0] in "WK"):
        places = np.prod(leaf.shape[:-2])  # of a kernel
        bound = np.sqrt(6 / (places * (leaf.shape[-2] + leaf.shape[-1])))
        # The largest of 150 numbers or more is within a tenth of the bound, but for 1 in 10^6.
        assert 0.9 * bound < np.max(np.abs(leaf)) <= bound * (1 + 1e-6)
        assert leaf.dtype == np.float32
    assert all(not leaf.any() for key, leaf in params.items() if key[0] == "b")


def test_first_recurrent_weights() -> None:
    params = arrays(recurrent.init(KEY, "lstm", 3, 4, jnp.float64))
    np.testing.assert_allclose(params["U"] @ params["U"].T, np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(params["b"], np.repeat([0, 1, 0, 0], 4))
    assert not recurrent.init(KEY, "gru", 3, 4)["b"].any()


@pytest.mark.parametrize(
    ("call", "texts"),
    [
        (lambda: mlp.init(KEY, [3]), ["[3]", "two or more"]),
        (lambda: mlp.init(KEY, [3, 0, 1]), ["[3, 0, 1]", "positive"]),
        (lambda: lenet.init(KEY, (8, 28)), ["8 × 28", "12 × 12", "mlp"]),
        (lambda: recurrent.init(KEY, "rhn", 3, 4), ["'rhn'", "'lstm'"]),
        (lambda: gpt.init(KEY, 5, width=6), ["width 6, 4 heads", "multiple"]),
    ],
)
def test_called_wrongly(call: Any, texts: list[str]) -> None:
    with pytest.raises(TrainingError) as raised:
        call()
    assert all(text in str(raised.value) for text in texts)
