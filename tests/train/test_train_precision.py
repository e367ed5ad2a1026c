"""Mixed precision: what is computed in which dtype, and the scale of a float16 loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_bp import train
from functional_bp.errors import TrainingError
from functional_bp.train import state as module
from functional_bp.train.state import LossScale, Precision

SGD = optax.sgd(1.0)
RNG = np.random.default_rng(3)
X = RNG.normal(size=(16, 4)).astype(np.float32)
W = RNG.normal(size=(4, 1)).astype(np.float32)
Y = (X @ RNG.normal(size=(4, 1))).astype(np.float32)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_the_model_is_computed_in_it_and_the_rest_in_float32(name: str, accumulate: int) -> None:
    seen = {}

    def model(params: Any, x: Any, model_state: Any) -> Any:
        seen.update(params=params["w"].dtype, x=x["x"].dtype, ids=x["ids"].dtype)
        return x["x"] @ params["w"], {"mean": (x["x"] @ params["w"]).mean()}

    def loss(predictions: Any, y: Any) -> Any:
        seen.update(predictions=predictions.dtype, y=y.dtype)
        return (predictions - y) ** 2

    task = train.supervised(model, loss, ["mae"])
    state = train.init({"w": W}, SGD, precision=name, model_state={"mean": np.float32(0)})
    step = train.step(task, SGD, precision=name, accumulate=accumulate)
    before = jax.tree.map(jax.typeof, state)
    state, logs = step(state, ({"x": X, "ids": np.arange(16)}, Y))
    assert seen == {
        "params": name, "x": name, "ids": "int64", "predictions": "float32", "y": "float32"
    }  # fmt: skip
    assert jax.tree.map(jax.typeof, state) == before
    assert {logs[k].dtype.name for k in ("loss", "mae")} == {"float32"}


@pytest.mark.parametrize(("name", "digits"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_the_gradient_is_that_of_float32_to_the_digits_of_the_dtype(
    name: str, digits: float
) -> None:
    task = train.supervised(lambda w, x: x @ w, "mse")
    state = train.init(W, SGD, precision=name)
    if name == "float16":  # the first scale is made for gradients smaller than these
        state = state.replace(loss_scale=LossScale(jnp.float32(2.0**8), jnp.int32(0)))
    state, _ = train.step(task, SGD, precision=name)(state, (X, Y))
    residual = X.astype(np.float64) @ W - Y
    gradient = 2 * X.T @ residual / len(X)
    # A rounding of each input, of the prediction and of each term of the sum, some of them apart.
    terms = 2 * np.abs(X.T) @ (np.abs(residual) + np.abs(X) @ np.abs(W)) / len(X)
    assert np.all(np.abs(W - state.params - gradient) <= 4 * digits * terms)
    assert np.any(np.abs(W - state.params - gradient) > 1e-6)  # it was not float32


def tiny(w: Any, x: Any) -> Any:
    """∂/∂w = 1e-9 x, which passes a product in the dtype of w and x: float16 ends at 6e-8."""
    return jnp.float32(1e-9) * (w * x).astype(jnp.float32)


def scaled(scale: float, good_steps: int = 0, loss: Any = tiny, w: float = 0.0) -> Any:
    state = train.init(np.float32(w), SGD, precision="float16")
    scales = LossScale(jnp.float32(scale), jnp.int32(good_steps))
    return state.replace(loss_scale=scales), train.step(loss, SGD, precision="float16")


def test_a_gradient_of_1e_9_is_lost_without_a_scale_and_survives_with_it() -> None:
    state, step = scaled(1.0)
    lost, _ = step(state, np.float32(2))
    assert float(lost.params) == 0.0
    state, step = scaled(2.0**15)
    found, _ = step(state, np.float32(2))
    np.testing.assert_allclose(found.params, -2e-9, rtol=2.0**-8)  # 3e-5 has 9 bits in float16
    state = train.init(np.float32(0), SGD, precision="float16")
    np.testing.assert_array_equal(state.loss_scale, (2.0**15, 0))


def test_the_scale_does_not_change_the_loss_or_a_gradient_that_needs_none() -> None:
    def loss(w: Any, x: Any) -> Any:
        return (w * x) ** 2

    for accumulate in (1, 2):
        found = []
        for scale in (1.0, 2.0**10):
            state, _ = scaled(scale, loss=loss, w=0.5)
            step = train.step(
                lambda w, x: jnp.mean(loss(w, x)), SGD, precision="float16", accumulate=accumulate
            )
            state, logs = step(state, np.array([0.5, 0.25], np.float32))
            found.append((float(state.params), float(logs["loss"])))
        assert found[0] == found[1]
        assert found[0][1] == (0.25**2 + 0.125**2) / 2


def test_an_overflow_halves_the_scale_and_leaves_everything_else() -> None:
    state, step = scaled(2.0**15, 7, lambda w, x: w * x, w=1.0)
    state, logs = step(state, np.float32(4))  # 4 · 2^15 is beyond 65504
    np.testing.assert_array_equal(state.loss_scale, (2.0**14, 0))
    assert (float(state.params), int(state.step)) == (1.0, 1)
    assert not logs["nonfinite"] and float(logs["loss"]) == 4.0
    state, logs = step(state, np.float32(4))  # 2^16 still is
    assert not logs["nonfinite"]
    state, logs = step(state, np.float32(4))
    np.testing.assert_array_equal(state.loss_scale, (2.0**13, 1))
    assert (float(state.params), int(state.step)) == (-3.0, 3)
    assert step.compilations == 1


@pytest.mark.parametrize("nonfinite", [None, "skip", "stop"])
def test_an_overflow_at_the_smallest_scale_is_a_failure(nonfinite: Any) -> None:
    state, _ = scaled(1.0, loss=tiny, w=1.0)
    step = train.step(
        lambda w, x: jnp.sqrt(w - 1) * x, SGD, precision="float16", nonfinite=nonfinite
    )
    state, logs = step(state, np.float32(1))  # √0 has no finite derivative
    assert logs["nonfinite"] and float(logs["loss"]) == 0.0
    np.testing.assert_array_equal(state.loss_scale, (1.0, 0))
    assert float(state.params) == 1.0
    assert int(state.step) == (0 if nonfinite == "stop" else 1)


def test_an_overflow_at_twice_the_smallest_scale_is_none_yet() -> None:
    state, step = scaled(2.0, loss=lambda w, x: w * x, w=1.0)
    state, logs = step(state, np.float32(40000))
    assert not logs["nonfinite"] and float(state.params) == 1.0
    state, logs = step(state, np.float32(40000))
    assert not logs["nonfinite"] and float(state.params) == 1.0 - 40000


def test_a_loss_that_is_not_finite_is_a_failure_at_any_scale() -> None:
    def loss(w: Any, x: Any) -> Any:
        return w * x

    state, _ = scaled(2.0**8, 5, w=1.0)
    step = train.step(loss, SGD, precision="float16", nonfinite="stop")
    state, logs = step(state, np.float32("nan"))
    assert logs["nonfinite"]
    np.testing.assert_array_equal(state.loss_scale, (2.0**8, 5))  # the last good state
    assert (float(state.params), int(state.step)) == (1.0, 0)


def test_the_scale_doubles_after_enough_good_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.GROWTH_STEPS == 2000
    monkeypatch.setattr(module, "GROWTH_STEPS", 3)
    state, step = scaled(4.0)
    found = []
    for _ in range(7):
        state, _ = step(state, np.float32(1))
        found.append((float(state.loss_scale.scale), int(state.loss_scale.good_steps)))
    assert found == [(4, 1), (4, 2), (8, 0), (8, 1), (8, 2), (16, 0), (16, 1)]


def test_the_2000th_good_step_doubles_and_an_infinite_scale_is_never_reached() -> None:
    for scale, good, expected in [
        (4.0, 1998, (4.0, 1999)),
        (4.0, 1999, (8.0, 0)),
        (2.0**126, 1999, (2.0**126, 0)),
    ]:
        after = LossScale(jnp.float32(scale), jnp.int32(good)).after(jnp.bool_(True))
        np.testing.assert_array_equal(after, expected)
        assert [x.dtype.name for x in after] == ["float32", "int32"]


def test_float16_trains_as_float32_does() -> None:
    task = train.supervised(lambda w, x: x @ w, "mse")
    adam = optax.adam(0.1)
    found = {}
    for name in (None, "bfloat16", "float16"):
        state = train.init(W, adam, precision=name)
        step = train.step(task, adam, precision=name)
        logs = {}
        for _ in range(150):
            state, logs = step(state, (X, Y))
        found[name] = float(logs["loss"])
        assert step.compilations == 1
    variance = float(np.mean(Y**2))
    assert found[None] < 1e-4 * variance
    assert found["float16"] < 1e-4 * variance  # predictions have 11 bits: (2^-11)² of Y² is less
    assert found["bfloat16"] < 1e-3 * variance  # 8 bits: 1.5e-5 of Y² by rounding the predictions


def test_half_precision_parameters_have_float32_masters() -> None:
    given = {"half": W.astype(np.float16), "brain": jnp.asarray(W, "bfloat16"), "wide": W}
    kept = train.init(given, SGD, precision="bfloat16").params
    assert {x.dtype.name for x in jax.tree.leaves(kept)} == {"float32"}
    as_given = train.init(given, SGD).params
    assert [as_given[name].dtype for name in given] == [x.dtype for x in given.values()]


def test_numbers_that_are_no_arrays_and_other_dtypes_are_not_cast() -> None:
    tree = {
        "number": 2.0,
        "int": np.arange(2),
        "key": jax.random.key(0),
        "complex": np.ones(1, "c8"),
    }
    cast = Precision.of("bfloat16").cast(tree)
    assert all(cast[name] is tree[name] for name in tree)
    state = train.init(1.0, SGD, precision="float16")
    _, logs, _ = train.step(lambda w, x: w * x, SGD, precision="float16").advance(state, 3.0)
    assert float(logs["loss"]) == 3.0


@pytest.mark.parametrize("name", [None, "float32", jnp.float32, np.dtype("float32")])
def test_full_precision_casts_nothing(name: Any) -> None:
    assert Precision.of(name) == Precision()
    assert train.init(1.0, SGD, precision=name).loss_scale is None


@pytest.mark.parametrize("name", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")])
def test_a_precision_is_a_name_or_a_dtype(name: Any) -> None:
    assert Precision.of(name).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["fp16", "float64", "mixed_float16", 16, "int8"])
def test_another_precision_is_refused(name: Any) -> None:
    with pytest.raises(TrainingError, match="this precision is not known"):
        train.step(tiny, SGD, precision=name)
    with pytest.raises(TrainingError, match="this precision is not known"):
        train.init(1.0, SGD, precision=name)


def test_float16_without_a_scale_in_the_state_is_refused() -> None:
    step = train.step(tiny, SGD, precision="float16")
    with pytest.raises(TrainingError, match="float16 needs the scale of the loss in the state"):
        step(train.init(1.0, SGD), np.float32(1))
