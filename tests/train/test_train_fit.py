"""``fit`` against a loop written out; what it stops for; what it refuses at the door."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_bp import train
from functional_bp.errors import BackpropError, NonFiniteError, TrainingError
from functional_bp.train.loop import TrainingLoop

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 50)
PARAMS = {
    "W1": RNG.normal(size=(4, 5)).astype(np.float32),
    "W2": RNG.normal(size=(5, 3)).astype(np.float32),
}
OPTIMIZER = optax.adam(1e-2)


def scores(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["W1"]) @ params["W2"]


TASK = train.supervised(scores, "cross_entropy", ["accuracy"])


def fit(*data: Any, loss: Any = TASK, params: Any = PARAMS, **options: Any) -> Any:
    options = {"optimizer": OPTIMIZER, "epochs": 3, "batch_size": 16, "verbose": 0, **options}
    return train.fit(loss, params, *(data or (X, Y)), **options)


def written_out(epochs: int, batch_size: int, seed: int) -> tuple[Any, list[float]]:
    """The same training with jax.grad, optax and the documented order of the examples."""

    @jax.jit
    def step(params: Any, opt_state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = scores(params, x)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = OPTIMIZER.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params, losses = jax.tree.map(jnp.asarray, PARAMS), []
    opt_state = OPTIMIZER.init(params)
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(X))
        total = 0.0
        for first in range(0, len(X), batch_size):
            rows = order[first : first + batch_size]
            params, opt_state, value = step(params, opt_state, X[rows], Y[rows])
            total += float(value) * len(rows)
        losses.append(total / len(X))
    return params, losses


def close(a: Any, b: Any, rtol: float = 1e-5) -> None:
    """Equal to rounding: float32 sums in another order, some hundred of them."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


def same(a: Any, b: Any) -> None:
    """Equal bit for bit, keys by their data."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_it_is_the_loop_that_one_would_write() -> None:
    state, history = fit(seed=7)
    params, losses = written_out(3, 16, seed=7)
    close(state.params, params)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    assert int(state.step) == 3 * 4  # 16, 16, 16 and 2 examples


@pytest.mark.long
def test_another_seed_is_another_order() -> None:
    assert fit(seed=1)[1]["loss"] != fit(seed=2)[1]["loss"]


@pytest.mark.long
def test_it_repeats_bit_for_bit() -> None:
    same(fit()[0], fit()[0])


@pytest.mark.long
def test_the_given_arrays_stay() -> None:
    params = jax.tree.map(jnp.asarray, PARAMS)
    state, _ = fit(params=params, epochs=1)
    again, _ = fit(params=state, epochs=1)
    close(params, PARAMS, 0)
    assert int(state.step) == 4 and int(again.step) == 8  # both are still there


def test_the_step_is_compiled_once_for_every_shape_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loops, run = [], TrainingLoop.run
    monkeypatch.setattr(
        TrainingLoop, "run", lambda self, *args: loops.append(self) or run(self, *args)
    )
    fit(epochs=4)
    fit(epochs=4, drop_last=True)
    assert [loop.program.compilations for loop in loops] == [2, 1]


def test_validation_is_the_mean_over_the_held_out_examples() -> None:
    state, history = fit(validation_split=0.2, epochs=2)
    logits = scores(state.params, X[40:])
    value = optax.losses.softmax_cross_entropy_with_integer_labels(logits, Y[40:]).mean()
    np.testing.assert_allclose(history["val_loss"][-1], value, rtol=1e-6)
    right = np.mean(np.argmax(logits, axis=1) == Y[40:])
    np.testing.assert_allclose(history["val_accuracy"][-1], right, rtol=1e-6)
    assert int(state.step) == 2 * 3  # the other 40 in batches of 16, 16 and 8
    other, _ = fit(X[:40], Y[:40], validation_data=(X[40:], Y[40:]), epochs=2)
    same(state, other)


def test_a_warning_points_at_the_persons_line() -> None:
    with pytest.warns(UserWarning, match="1 epochs without validation") as caught:
        fit(callbacks=[train.EarlyStopping()], epochs=1)
    assert caught[0].filename == __file__


def test_validation_can_be_rarer() -> None:
    _, history = fit(validation_split=0.2, validation_freq=2, epochs=4)
    assert [value is not None for value in history.column("val_loss")] == [False, True] * 2


def test_evaluate_and_predict_do_not_depend_on_the_batch_size() -> None:
    whole = train.evaluate(TASK, PARAMS, X, Y, batch_size=50)
    parts = train.evaluate(TASK, PARAMS, X, Y, batch_size=16)
    assert whole == pytest.approx(parts, rel=1e-6)
    close(train.predict(TASK, PARAMS, X, batch_size=16), scores(PARAMS, X))
    close(train.predict(scores, PARAMS, X, batch_size=50), scores(PARAMS, X))


def test_batches_of_a_generator_are_trained_on_one_by_one() -> None:
    def batches() -> Any:
        for first in range(0, 48, 16):
            yield X[first : first + 16], Y[first : first + 16]

    of_function, _ = fit(batches, epochs=2)
    of_arrays, _ = fit(X[:48], Y[:48], epochs=2, shuffle=False)
    same(of_function, of_arrays)
    assert int(fit(batches(), epochs=1)[0].step) == 3
    with pytest.raises(TrainingError, match="cannot be passed over again"):
        fit(batches(), epochs=2)


def test_steps_per_epoch_go_on_where_the_last_epoch_ended() -> None:
    state, history = fit(X[:48], Y[:48], epochs=3, steps_per_epoch=2, shuffle=False)
    twice, _ = fit(X[:48], Y[:48], epochs=2, shuffle=False)
    same(state, twice)
    assert len(history["loss"]) == 3


def test_any_function_of_params_and_a_batch_is_a_loss() -> None:
    def loss(params: Any, batch: Any) -> Any:
        wrong = jnp.square(batch["x"] @ params - batch["y"])
        return wrong.mean(), {"largest": wrong.max()}

    data = {"x": X, "y": X @ np.arange(4, dtype=np.float32)}
    state, history = fit(data, loss=loss, params=np.zeros(4, np.float32), epochs=60,
                         optimizer=optax.sgd(0.2))  # fmt: skip
    np.testing.assert_allclose(state.params, np.arange(4), atol=1e-3)
    assert history["largest"][-1] < 1e-5 < history["largest"][0]


def test_eight_devices_compute_what_one_does() -> None:
    one, history = fit(X[:48], Y[:48])
    eight, split = fit(X[:48], Y[:48], devices=8)
    close(one.params, eight.params)
    np.testing.assert_allclose(history["loss"], split["loss"], rtol=1e-5)
    assert len(jax.tree.leaves(eight.params)[0].sharding.device_set) == 8


@pytest.mark.long
def test_a_last_batch_that_the_devices_cannot_share() -> None:
    close(fit(X, Y)[0].params, fit(X, Y, devices=8)[0].params)


# Numbers that are not finite


def trap(params: Any, batch: Any) -> Any:
    """ln x of the batch: −∞ for the example that is 0."""
    return jnp.mean(jnp.log(batch) * params["w"] + params["b"] ** 2)


SAFE = np.full(40, 2.0, np.float32)
ONE_ZERO = SAFE.copy()
ONE_ZERO[25] = 0.0
WB = {"w": 1.0, "b": 1.0}


def test_a_run_stops_at_the_first_number_that_is_not_finite() -> None:
    options = {"loss": trap, "params": WB, "optimizer": optax.sgd(0.1), "batch_size": 4}
    with pytest.raises(NonFiniteError) as caught:
        fit(ONE_ZERO, shuffle=False, epochs=1, **options)
    good, _ = fit(SAFE[:24], shuffle=False, epochs=1, **options)
    same(caught.value.state, good)
    text = str(caught.value)
    assert "step 6, in epoch 1" in text
    assert "the loss is -inf" in text
    assert "the gradient is not finite for w (1 of 1 entries)" in text and "b (" not in text
    assert caught.value.finding.operation == "log"
    assert "ln 0.0 = −∞" in text and "test_train_fit.py" in text


def test_such_steps_can_be_left_out() -> None:
    options = {"loss": trap, "params": WB, "optimizer": optax.sgd(0.1), "batch_size": 4}
    state, history = fit(ONE_ZERO, shuffle=False, epochs=1, nonfinite="skip", **options)
    without = np.delete(ONE_ZERO, slice(24, 28))
    expected, _ = fit(without, shuffle=False, epochs=1, **options)
    same(state.params, expected.params)
    assert history["skipped_steps"] == [1] and np.isfinite(history["loss"]).all()


def test_who_does_not_look_gets_nan() -> None:
    options = {"loss": trap, "params": WB, "optimizer": optax.sgd(0.1), "batch_size": 4}
    state, _ = fit(ONE_ZERO, shuffle=False, epochs=1, nonfinite=None, **options)
    assert not np.isfinite(state.params["w"])


def test_an_overflow_in_the_gradient_alone_is_found() -> None:
    def root(params: Any, batch: Any) -> Any:
        return jnp.mean(jnp.sqrt(params["w"] * batch))

    with pytest.raises(NonFiniteError, match="gradient is not finite for w") as caught:
        fit(SAFE, loss=root, params={"w": 0.0}, epochs=1)
    assert "the loss is 0.0" in str(caught.value) and caught.value.finding.operation == "sqrt"


# The door


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ((X[:0], Y[:0]), {}, "no example"),
        ((X, Y[:49]), {}, "50"),
        ((X, Y + 1), {}, "labels from 1 to 3"),
        ((X, Y), {"batch_size": 0}, "batch_size"),
        ((X, Y), {"epochs": 0}, "epochs"),
        ((X, Y), {"validation_split": 1.5}, "validation_split"),
        ((X[:, :3], Y), {}, "x f32[16,3]"),
        ((X, Y), {"validation_data": (X[:, :3], Y)}, "validation"),
        ((X, Y), {"validation_data": (X, Y), "validation_split": 0.1}, "twice"),
        ((X, Y.astype(np.float32)), {}, "integer labels"),
        ((X, None, np.ones(50)), {}, "without y"),
        ((X, Y, np.ones(49)), {}, "49"),
        ((X, Y), {"devices": 9}, "1 to 8"),
        ((X, Y), {"devices": 3}, "multiple of 3"),
        ((X, Y), {"nonfinite": "ignore"}, "'skip' or 'stop'"),
        ((X, Y), {"optimizer": "adam"}, "optax"),
        ((X.astype(str), Y), {}, "x"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_compiled(
    data: Any, options: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingLoop, "run", lambda *_: pytest.fail("the loop was started"))
    with pytest.raises(BackpropError) as caught:
        fit(*data, **options)
    assert words in str(caught.value)


def test_a_loss_that_is_no_scalar_is_named() -> None:
    with pytest.raises(TrainingError, match="the loss is not one real number"):
        fit(X, loss=lambda params, x: x @ params["W1"])
