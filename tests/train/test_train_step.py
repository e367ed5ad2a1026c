"""``train.step`` against loops written out with ``jax.value_and_grad`` and optax."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sampling import sampled

from functional_bp import train
from functional_bp.errors import TrainingError
from functional_bp.train.step import microbatch_count

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 2))

# Two programs for one formula in double precision differ in the order of their sums: some dozen
# roundings of 1e-16 a step, over a few steps.
TOLERANCE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14}


class Layer(NamedTuple):
    w: Any
    b: Any


W, B = RNG.normal(size=(3, 2)), RNG.normal(size=2)
MODELS = {
    "dict": ({"w": W, "b": B}, lambda p, x: jnp.tanh(x @ p["w"] + p["b"])),
    "NamedTuple": (Layer(W, B), lambda p, x: jnp.tanh(x @ p.w + p.b)),
    "list": ([W, B], lambda p, x: jnp.tanh(x @ p[0] + p[1])),
    "array": (W, lambda p, x: jnp.tanh(x @ p)),
}
OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "schedule": optax.sgd(optax.exponential_decay(0.2, 2, 0.5)),
    "adamw": optax.adamw(1e-2),
    "inject": optax.inject_hyperparams(optax.adam)(1e-2),
    "lbfgs": optax.lbfgs(),  # line search: wants value, grad and value_fn
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
    "polyak": optax.polyak_sgd(max_learning_rate=100.0),  # wants value
    "multisteps": optax.MultiSteps(optax.adam(1e-2), 2),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-2),
}


def loss_of(model: Any) -> Any:
    return lambda p, batch: jnp.mean((model(p, batch[0]) - batch[1]) ** 2)


LOSS = loss_of(MODELS["dict"][1])
PARAMS = MODELS["dict"][0]


def written_out(loss: Any, params: Any, optimizer: Any, batch: Any, steps: int) -> Any:
    params = jax.tree.map(jnp.asarray, params)
    opt_state = optimizer.init(params)
    update = jax.jit(optax.with_extra_args_support(optimizer).update, static_argnames="value_fn")
    gradient_of, losses = jax.jit(jax.value_and_grad(loss)), []

    def value_fn(p: Any) -> Any:
        return loss(p, batch)

    for _ in range(steps):
        value, gradient = gradient_of(params, batch)
        updates, opt_state = update(
            gradient, opt_state, params, value=value, grad=gradient, value_fn=value_fn
        )
        params = optax.apply_updates(params, updates)
        losses.append(value)
    return params, losses


def trained(loss: Any, params: Any, optimizer: Any, batch: Any, steps: int, **options: Any) -> Any:
    state, step = train.init(params, optimizer), train.step(loss, optimizer, **options)
    losses = []
    for _ in range(steps):
        state, logs = step(state, batch)
        losses.append(logs["loss"])
    return state.params, losses


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, expected)


@pytest.mark.parametrize("name", sampled(OPTIMIZERS, 3))
def test_every_optimizer_moves_as_in_a_loop_written_out(name: str) -> None:
    expected = written_out(LOSS, PARAMS, OPTIMIZERS[name], (X, Y), 4)
    assert_same(trained(LOSS, PARAMS, OPTIMIZERS[name], (X, Y), 4), expected)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_any_pytree(name: str) -> None:
    params, model = MODELS[name]
    expected = written_out(loss_of(model), params, optax.adam(1e-2), (X, Y), 3)
    assert_same(trained(loss_of(model), params, optax.adam(1e-2), (X, Y), 3), expected)


def test_one_step_of_gradient_descent_by_hand() -> None:
    w, eta = W[:, 0], 0.1
    params, (loss,) = trained(
        lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2),
        w, optax.sgd(eta), (X, Y[:, 0]), 1,
    )  # fmt: skip
    residual = X @ w - Y[:, 0]
    np.testing.assert_allclose(loss, np.mean(residual**2), **TOLERANCE)
    np.testing.assert_allclose(params, w - eta * 2 * X.T @ residual / len(X), **TOLERANCE)


def test_complex_parameters_go_downhill() -> None:
    """L = mean |z x − c|² falls along x̄ (z x − c), whose conjugate jax.grad gives."""
    x, c, z, eta = X[:, 0] + 1j * X[:, 1], Y[:, 0] + 1j * Y[:, 1], 1.0 - 2.0j, 0.05

    def loss(z: Any, batch: Any) -> Any:
        return jnp.mean(jnp.abs(z * batch[0] - batch[1]) ** 2)

    params, losses = trained(loss, z, optax.sgd(eta), (x, c), 200)
    first, _ = trained(loss, z, optax.sgd(eta), (x, c), 1)
    gradient = 2 * np.mean(np.conj(x) * (z * x - c))
    np.testing.assert_allclose(first, z - eta * gradient, **TOLERANCE)
    np.testing.assert_allclose(params, np.vdot(x, c) / np.vdot(x, x), atol=1e-6)  # least squares
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("transform", [jax.value_and_grad, None])
def test_the_transform_that_differentiates_can_be_chosen(transform: Any) -> None:
    calls = []

    def recorded(fun: Any, **options: Any) -> Any:
        calls.append(options)
        return jax.value_and_grad(fun, **options)

    options = {"value_and_grad": recorded} if transform else {}
    found = trained(LOSS, PARAMS, optax.sgd(0.1), (X, Y), 1, **options)
    assert calls == ([{"has_aux": True}] if transform else [])
    assert_same(found, written_out(LOSS, PARAMS, optax.sgd(0.1), (X, Y), 1))


def by_hand(params: Any, batch: Any, factor: float = 2.0) -> Any:
    x, y = batch
    y_hat = jnp.tanh(x @ params["w"] + params["b"])
    o_bar = factor * (y_hat - y) / y.size * (1 - y_hat**2)
    return {"w": x.T @ o_bar, "b": o_bar.sum(axis=0)}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_gradient_by_hand_trains_as_the_transform(accumulate: int) -> None:
    data = (LOSS, PARAMS, optax.adam(1e-2), (X, Y), 3)
    right = trained(*data, gradient=by_hand, accumulate=accumulate)
    assert_same(right, written_out(*data))


def test_a_wrong_gradient_by_hand_is_taken_as_it_is() -> None:
    data = (LOSS, PARAMS, optax.sgd(0.1), (X, Y), 1)
    wrong, _ = trained(*data, gradient=lambda p, batch: by_hand(p, batch, factor=1.0))
    right, _ = written_out(*data)
    halfway = jax.tree.map(lambda a, b: (a + b) / 2, PARAMS, right)
    assert_same(wrong, halfway)


@pytest.mark.parametrize(
    ("length", "accumulate", "count"),
    [(12, 1, 1), (12, 3, 3), (12, 5, 6), (12, 7, 12), (12, 99, 12), (7, 2, 7), (1, 4, 1)],
)
def test_accumulated_microbatches_give_the_gradient_of_the_batch(
    length: int, accumulate: int, count: int
) -> None:
    batch = (X[:length], Y[:length])
    sizes = []

    def loss(p: Any, batch: Any, model_state: Any) -> Any:
        sizes.append(len(batch[0]))
        return train.Output(LOSS(p, batch), {"mean": batch[0].mean()}, model_state + 1)

    optimizer = optax.sgd(0.1)
    state = train.init(PARAMS, optimizer, model_state=0)
    state, logs = train.step(loss, optimizer, accumulate=accumulate)(state, batch)
    params, losses = written_out(LOSS, PARAMS, optimizer, batch, 1)
    assert_same((state.params, [logs["loss"]]), (params, losses))
    np.testing.assert_allclose(logs["mean"], batch[0].mean(), **TOLERANCE)
    assert sizes[-1] == length // count
    assert int(state.model_state) == count == microbatch_count(length, accumulate)


def test_microbatches_weigh_by_their_examples() -> None:
    """A mean over the words that are not padding, of which one microbatch has more."""
    mask = np.array([1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1.0])

    def masked(p: Any, batch: Any) -> Any:
        x, y, mask = batch
        error = jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) - y) ** 2, axis=1)
        return train.Output(jnp.sum(mask * error) / mask.sum(), weight=mask.sum())

    data = (PARAMS, optax.sgd(0.1), (X, Y, mask), 1)
    expected = written_out(lambda p, batch: masked(p, batch).loss, *data)
    for accumulate in (1, 3):
        assert_same(trained(masked, *data, accumulate=accumulate), expected)


def test_microbatches_without_any_example_leave_the_parameters() -> None:
    def empty(p: Any, batch: Any) -> Any:
        return train.Output(jnp.sum(p * batch), weight=0)

    params, losses = trained(empty, 1.0, optax.sgd(0.1), X, 1, accumulate=3)
    assert (params, losses) == (1.0, [0.0])


def test_every_microbatch_has_its_own_random_key_and_the_numbers_of_the_batch() -> None:
    def loss(w: Any, batch: Any, rng: Any) -> Any:
        draw = jax.random.normal(rng)
        return w * batch["scale"], {"draw": draw, "square": draw**2}

    optimizer = optax.sgd(0.1)
    batch = {"scale": 3.0, "x": X}
    state = train.init(1.0, optimizer, seed=5)
    state, logs = train.step(loss, optimizer, accumulate=4)(state, batch)
    key = jax.random.fold_in(jax.random.key(5), 0)
    draws = np.array([jax.random.normal(jax.random.fold_in(key, k)) for k in range(4)])
    np.testing.assert_allclose(logs["draw"], draws.mean(), rtol=1e-6)
    np.testing.assert_allclose(logs["square"], (draws**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(state.params, 1 - 0.1 * 3, **TOLERANCE)


def test_arrays_of_two_lengths_are_not_split() -> None:
    step = train.step(lambda w, b: w * b[0].mean() * b[1].mean(), optax.sgd(0.1), accumulate=2)
    with pytest.raises(TrainingError, match=r"arrays of two lengths\n.*batch\[1\]\n.*f64\[3\]"):
        step(train.init(1.0, optax.sgd(0.1)), (np.ones(4), np.ones(3)))


def test_the_norm_of_the_gradient_is_clipped_and_logged() -> None:
    gradient = np.array([3.0, 4.0])
    for bound, factor in ((1.0, 0.2), (5.0, 1.0), (50.0, 1.0)):
        optimizer = optax.sgd(1.0)
        state, logs = train.step(lambda w, g: w @ g, optimizer, clip_norm=bound)(
            train.init(np.zeros(2), optimizer), gradient
        )
        np.testing.assert_allclose(logs["grad_norm"], 5.0)
        np.testing.assert_allclose(state.params, -factor * gradient)


def test_entries_of_the_gradient_are_clipped_before_the_norm() -> None:
    optimizer = optax.sgd(1.0)
    step = train.step(lambda w, g: w @ g, optimizer, clip_value=2.0, clip_norm=1.0)
    state, logs = step(train.init(np.zeros(2), optimizer), np.array([-30.0, 1.5]))
    np.testing.assert_allclose(logs["grad_norm"], 2.5)
    np.testing.assert_allclose(state.params, [2.0 / 2.5, -1.5 / 2.5])


def test_a_complex_gradient_is_clipped_in_both_parts() -> None:
    optimizer = optax.sgd(1.0)
    step = train.step(lambda z, c: jnp.real(z * c), optimizer, clip_value=2.0)
    state, _ = step(train.init(0j, optimizer), 5 + 1j)
    np.testing.assert_allclose(state.params, -(2 - 1j))  # ∂/∂x = 5, ∂/∂y = −1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate cannot be this\n  got:      0"),
        ({"accumulate": 2.0}, "accumulate cannot be this\n  got:      2.0"),
        ({"clip_norm": 0}, "clip_norm cannot be this\n  got:      0"),
        ({"clip_value": -1.0}, "clip_value cannot be this\n  got:      -1.0"),
        ({"nonfinite": "raise"}, "nonfinite cannot be this\n  got:      'raise'"),
        ({"optimizer": "adam"}, "optimizer cannot be this\n  got:      'adam'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train.step(LOSS, **{"optimizer": optax.sgd(0.1), **options})


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (lambda p, b: [p["w"]], "has not the structure of params"),
        (lambda p, b: {"w": p["w"].T, "b": p["b"]}, r"params\['w'\] has another shape"),
    ],
)
def test_a_gradient_by_hand_of_another_form_is_refused(gradient: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        trained(LOSS, PARAMS, optax.sgd(0.1), (X, Y), 1, gradient=gradient)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("after", "message"),
    [
        (None, "a step changes the structure of model_state"),
        ({"mean": np.ones(3)}, r"the shape of model_state\['mean'\]\n.*f64\[3\]\n.*f64\[\]"),
    ],
)
def test_a_model_state_of_another_form_is_refused(
    after: Any, message: str, accumulate: int
) -> None:
    def loss(w: Any, batch: Any, model_state: Any) -> Any:
        return train.Output(w * batch.mean(), model_state=after)

    state = train.init(1.0, optax.sgd(0.1), model_state={"mean": 0.0})
    with pytest.raises(TrainingError, match=message):
        train.step(loss, optax.sgd(0.1), accumulate=accumulate)(state, X)


def test_a_state_of_another_optimizer_or_none_is_refused() -> None:
    step = train.step(LOSS, optax.adam(0.1))
    with pytest.raises(TrainingError, match="belongs to another optimizer"):
        step(train.init(PARAMS, optax.sgd(0.1)), (X, Y))
    params: Any = jax.tree.map(jnp.asarray, PARAMS)
    with pytest.raises(TrainingError, match="a step begins with a state\n.*dict"):
        step(params, (X, Y))


def test_an_optimizer_that_fails_by_itself_says_so_itself() -> None:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        raise ZeroDivisionError("mine")

    broken = optax.GradientTransformation(lambda params: (), update)
    with pytest.raises(ZeroDivisionError, match="mine"):
        trained(LOSS, PARAMS, broken, (X, Y), 1)


def tokens_without_weight(p: Any, batch: Any) -> Any:
    x, y, mask = batch
    error = jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) - y) ** 2, axis=1)
    return jnp.sum(mask * error) / mask.sum()


def added(p: Any, batch: Any) -> Any:
    x, y, _ = batch
    return jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) - y) ** 2)


@pytest.mark.parametrize("loss", [tokens_without_weight, added])
def test_microbatches_follow_the_law_that_the_graph_shows(loss: Any) -> None:
    mask = np.array([1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1.0])
    data = (PARAMS, optax.sgd(0.01), (X, Y, mask), 1)
    expected = written_out(loss, *data)
    for accumulate in (1, 3):
        assert_same(trained(loss, *data, accumulate=accumulate), expected)


def test_coupled_examples_are_refused_with_the_reason_or_allowed() -> None:
    def normalised(p: Any, batch: Any) -> Any:
        h = batch[0] @ p["w"] + p["b"]
        return jnp.mean(((h - h.mean(0)) / (h.std(0) + 1) - batch[1]) ** 2)

    data = (PARAMS, optax.sgd(0.1), (X, Y), 1)
    with pytest.raises(TrainingError, match="microbatches would change the loss") as refused:
        trained(normalised, *data, accumulate=2)
    assert refused.value.got == "sub sets each example against the sum over all"
    assert refused.value.where.startswith("test_train_step.py:")
    params, _ = trained(normalised, *data, accumulate=2, allow_coupled=True)
    halves = [jax.grad(normalised)(PARAMS, (X[k::2], Y[k::2])) for k in range(2)]
    mean = jax.tree.map(lambda p, a, b: p - 0.1 * (a + b) / 2, PARAMS, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), params, mean)
