"""What steps do to the state: its buffers, its dtypes, its counter; what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sampling import sampled

from functional_bp import train
from functional_bp.errors import TrainingError

ADAM = optax.adam(1e-2)
X = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)


def loss(w: Any, x: Any) -> Any:
    return jnp.mean((x @ w - 1) ** 2)


@pytest.mark.parametrize(
    ("params", "accumulate"),
    sampled(
        [
            (1.0, 1),
            (1.0, 2),
            (np.float32(1), 2),
            (jnp.asarray(1.0), 1),  # weakly typed
            (jnp.ones((), "bfloat16"), 2),
        ],
        3,
    ),
)
def test_a_step_is_compiled_once(params: Any, accumulate: int) -> None:
    traces = []

    def traced(w: Any, x: Any, rng: Any, model_state: Any) -> Any:
        traces.append(None)
        value = jnp.mean((x * w - jax.random.normal(rng)) ** 2)
        return train.Output(value, {"half": value.astype("bfloat16")}, {"count": 1.0})

    step = train.step(traced, ADAM, nonfinite="skip", accumulate=accumulate)
    state = train.init(params, ADAM, model_state={"count": 0})
    state, _ = step(state, X)
    before = len(traces), jax.tree.map(jax.typeof, state)
    for k in range(8):
        state, _ = step(state, jnp.asarray(X) if k % 2 else X)
    assert (len(traces), jax.tree.map(jax.typeof, state)) == before
    assert step.compilations == 1
    step(state, X[:4])
    assert step.compilations == 2


def test_an_optimizer_that_changes_dtypes_does_not_change_the_states() -> None:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, state + 1.5  # a wider number than it was given

    widening = optax.GradientTransformation(lambda params: jnp.float16(0), update)
    step, state = train.step(loss, widening), train.init(np.ones(3), widening)
    for _ in range(2):
        state, _ = step(state, X)
    assert state.opt_state.dtype == np.float16
    assert (float(state.opt_state), step.compilations) == (3.0, 1)


def test_training_twice_gives_the_same_bits() -> None:
    def drawn(w: Any, x: Any, rng: Any) -> Any:
        return loss(w, x * jax.random.bernoulli(rng, 0.5, x.shape))

    def run() -> Any:
        state, step = train.init(np.ones(3), ADAM, seed=3), train.step(drawn, ADAM, accumulate=2)
        losses = []
        for _ in range(5):
            state, logs = step(state, X)
            losses.append(logs["loss"])
        return state.params, state.opt_state, losses

    jax.tree.map(np.testing.assert_array_equal, run(), run())


def test_the_state_is_donated_and_a_persons_arrays_are_not() -> None:
    given = {"w": jnp.ones(3), "tied": jnp.ones(3)}
    given["tied"] = given["w"]
    numpy_state = np.zeros(2)
    state = train.init(given, ADAM, model_state=numpy_state, seed=(key := jax.random.key(0)))
    step = train.step(lambda p, x: loss(p["w"] * p["tied"], x), ADAM)
    after, _ = step(state, X)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not given["w"].is_deleted() and not key.is_deleted()
    np.testing.assert_array_equal(given["w"], 1)
    np.testing.assert_array_equal(numpy_state, 0)
    assert int(after.step) == 1


def test_an_optimizer_that_keeps_the_parameters_or_an_array_of_its_own() -> None:
    """Neither is one buffer donated twice nor one deleted that the optimizer holds."""
    own = jnp.full(3, 0.5)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda g, own: -own * g, updates, state["own"]), state

    keeping = optax.GradientTransformation(lambda params: {"first": params, "own": own}, update)
    for _ in range(2):
        state, step = train.init(np.ones(3), keeping), train.step(loss, keeping)
        for _ in range(2):
            state, _ = step(state, X)
        np.testing.assert_array_equal(state.opt_state["first"], np.ones(3))
    np.testing.assert_array_equal(own, 0.5)


def test_without_donation_the_state_can_be_used_again() -> None:
    state, step = train.init(np.ones(3), ADAM), train.step(loss, ADAM, donate=False)
    (first, _), (again, _) = step(state, X), step(state, X)
    np.testing.assert_array_equal(first.params, again.params)
    np.testing.assert_array_equal(state.params, 1)


def test_keywords_are_given_to_the_losses_that_name_them() -> None:
    def named(w: Any, batch: Any, *, rng: Any, training: bool, model_state: Any) -> Any:
        assert training is True
        draw = jax.random.uniform(rng)
        return train.Output(w * draw, {"draw": draw}, model_state + batch.sum())

    state, step = train.init(0.0, ADAM, seed=7, model_state=1.0), train.step(named, ADAM)
    for k in range(3):
        expected = jax.random.uniform(jax.random.fold_in(jax.random.key(7), k))
        np.testing.assert_array_equal(
            jax.random.uniform(state.step_rng), expected, err_msg=f"step {k}"
        )
        state, logs = step(state, np.ones(4))
        np.testing.assert_array_equal(logs["draw"], expected)
    assert float(state.model_state) == 1 + 3 * 4


def test_the_state_of_a_model_that_does_not_name_it_stays() -> None:
    state = train.init(np.ones(3), ADAM, model_state=np.arange(2))
    state, _ = train.step(lambda w, x: loss(w, x), ADAM)(state, X)
    np.testing.assert_array_equal(state.model_state, [0, 1])


def rooted(w: Any, x: Any, model_state: Any) -> Any:
    """√(w x): not finite where w x < 0; the gradient alone is not where it is 0."""
    return train.Output(jnp.sqrt(w * x), model_state=model_state + 1)


def states(nonfinite: Any, batches: list[float]) -> Any:
    sgd = optax.sgd(0.25, momentum=0.5)
    state, step = train.init(4.0, sgd, model_state=0), train.step(rooted, sgd, nonfinite=nonfinite)
    for x in batches:
        state, logs = step(state, x)
        yield jax.device_get(state.replace(rng=None)), jax.device_get(logs)


@pytest.mark.parametrize("bad", [-1.0, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("nonfinite", ["skip", "stop"])
def test_a_step_that_is_not_finite_changes_nothing(nonfinite: str, bad: float) -> None:
    (first, logs), (skipped, failed), (after, _) = states(nonfinite, [1.0, bad, 1.0])
    assert not logs["nonfinite"] and failed["nonfinite"]
    counted = skipped.step - first.step
    assert counted == (1 if nonfinite == "skip" else 0)
    jax.tree.map(np.testing.assert_array_equal, skipped.replace(step=first.step), first)
    _, (direct, _) = states(nonfinite, [1.0, 1.0])
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=direct.step), direct)


def test_without_the_option_nothing_is_looked_at() -> None:
    ((after, logs),) = states(None, [-1.0])
    assert "nonfinite" not in logs and np.isnan(logs["loss"]) and np.isnan(after.params)
    assert (after.step, after.model_state) == (1, 1)


@pytest.mark.parametrize("nonfinite", [None, "skip", "stop"])
@pytest.mark.parametrize("precision", [None, "float16"])
def test_a_step_within_another_jit_can_be_held(nonfinite: Any, precision: Any) -> None:
    state = train.init(np.ones(3), ADAM, precision=precision)
    step = train.step(loss, ADAM, nonfinite=nonfinite, precision=precision)
    advance: Callable[..., Any] = jax.jit(step.advance)
    held, _, weight = advance(state, X, False)
    assert int(weight) == len(X)
    jax.tree.map(np.testing.assert_array_equal, held.replace(rng=0), state.replace(rng=0))
    moved, _, _ = advance(state, X, True)
    expected, _ = step(state, X)
    jax.tree.map(np.testing.assert_array_equal, moved.replace(rng=0), expected.replace(rng=0))


def test_a_typed_key_in_the_state_of_a_model_is_carried() -> None:
    def drawing(w: Any, x: Any, model_state: Any) -> Any:
        key, use = jax.random.split(model_state)
        return train.Output(w * jax.random.uniform(use) * x.mean(), model_state=key)

    state = train.init(1.0, ADAM, model_state=jax.random.key(2))
    state, _ = train.step(drawing, ADAM, nonfinite="skip", accumulate=2)(state, X)
    expected = jax.random.split(jax.random.split(jax.random.key(2))[0])[0]
    assert jnp.array_equal(state.model_state, expected)


@pytest.mark.parametrize(
    "seed", [3, np.int64(3), np.uint32(3), jnp.int32(3), jax.random.key(3), jax.random.PRNGKey(3)]
)
def test_a_seed_is_a_number_or_a_key(seed: Any) -> None:
    state = train.init(1.0, ADAM, seed=seed)
    assert jnp.array_equal(state.rng, jax.random.key(3))


TWO_KEYS = jax.random.split(jax.random.key(3))


@pytest.mark.parametrize(
    "seed", [None, "3", 3.0, np.float32(3), np.ones((2, 2), np.uint32), TWO_KEYS]
)
def test_another_seed_is_refused(seed: Any) -> None:
    with pytest.raises(TrainingError, match="neither a number nor a random key"):
        train.init(1.0, ADAM, seed=seed)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "there is nothing to train"),
        (None, "there is nothing to train"),
        ({"a": [1.0, 2]}, r"no gradient\n  at:       params\['a'\]\[1\]\n  got:      i64\[\]"),
        ({"a": "relu"}, r"a leaf of the state is no array\n  at:       params\['a'\]\n.*str"),
        ({"a": jnp.sin}, r"a leaf of the state is no array\n  at:       params\['a'\]"),
    ],
)
def test_parameters_without_a_gradient_are_refused(params: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train.init(params, ADAM)
