"""``train.step(..., memory=...)``: the compiled step keeps to a budget and takes the same step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sampling import sampled

import functional_bp as bp
from functional_bp import train
from functional_bp.errors import TrainingError
from functional_bp.memory.allocation import program_of
from functional_bp.memory.attribution import Purpose
from functional_bp.memory.budgets import BudgetError
from functional_bp.memory.footprint import FootprintError

F = jnp.float32
OPTIMIZER = optax.adam(1e-2)
ROWS = 512


def draw(seed: int, *sizes: int) -> Any:
    return jax.random.normal(jax.random.key(seed), sizes, F) / float(np.sqrt(sizes[-1]))


PARAMS = [(draw(k, 16, 64), draw(k + 9, 64, 16)) for k in range(2)]
X = draw(1, ROWS, 16)


def deep(params: Any, x: Any) -> Any:
    for w, v in params:
        x = x + jax.nn.gelu(x @ w) @ v
    return jnp.mean(x**2)


def with_all(params: Any, batch: Any, model_state: Any, rng: Any) -> train.Output:
    """Dropout, a running mean, metrics and a weight."""
    x = batch["x"]
    for k, (w, v) in enumerate(params):
        keep = jax.random.bernoulli(jax.random.fold_in(rng, k), 0.9, x.shape)
        x = x + jnp.where(keep, jax.nn.gelu(x @ w) @ v, 0)
    mean = 0.9 * model_state["mean"] + 0.1 * x.mean(0)
    return train.Output(jnp.mean(x**2), {"largest": jnp.max(x)}, {"mean": mean}, x.shape[0] / 2)


def peak(step: Any, state: Any, batch: Any) -> int:
    """What XLA says of the step's program, and a few bytes of constants."""
    compiled = step.lower(state, batch).compile()
    stats = compiled.memory_analysis()
    arguments_and_outputs = stats.argument_size_in_bytes + stats.output_size_in_bytes
    constants = program_of(compiled).constant_bytes
    assert constants < 100
    return arguments_and_outputs + stats.temp_size_in_bytes - stats.alias_size_in_bytes + constants


def temporaries(step: Any, state: Any, batch: Any) -> int:
    return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes


STATE = {"mean": jnp.zeros(16, F)}
STEPS: dict[str, tuple[Callable[..., Any], Any, Any, dict[str, Any], float]] = {
    "state, metrics, random numbers": (
        with_all, {"x": X}, STATE, {"clip_norm": 1.0, "nonfinite": "skip"}, 0.6),
    "microbatches": (with_all, {"x": X}, STATE, {"accumulate": 2, "donate": False}, 0.8),
    "half precision, the loss scaled": (deep, X, None, {"precision": "float16"}, 0.85),
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(STEPS, 3))
def test_the_step_keeps_its_budget_and_is_the_same(name: str) -> None:
    loss, batch, model_state, options, share = STEPS[name]
    plain = train.step(loss, OPTIMIZER, **options)
    lean = train.step(loss, OPTIMIZER, memory=share, **options)
    made = lambda: train.init(
        PARAMS, OPTIMIZER, model_state=model_state, precision=options.get("precision")
    )
    assert temporaries(lean, made(), batch) <= share * temporaries(plain, made(), batch)
    for found, expected in zip(lean(made(), batch), plain(made(), batch)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            if jnp.issubdtype(a.dtype, jnp.floating):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    (choice,) = lean.choices.values()
    assert choice.schedule.flops > 0 and lean.compilations == 1


def test_a_budget_in_bytes_is_of_the_whole_step_and_footprint_tells_it() -> None:
    plain, state = train.step(deep, OPTIMIZER), train.init(PARAMS, OPTIMIZER)
    budget = int(0.7 * peak(plain, state, X))
    step = train.step(deep, OPTIMIZER, memory=budget)
    found = bp.footprint(step, state, jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert found.peak_bytes == peak(step, state, X) <= budget
    assert step.compilations == 1 and str(step).startswith("a training step of deep needs")
    assert found.training and found.training.by_use[Purpose.OPTIMIZER] > 0
    assert "test_train_memory.py" in str(step) and "runs again" in str(step)
    for _ in range(3):
        state, _ = step(state, X)
    assert step.compilations == 1 and int(state.step) == 3


def test_a_budget_that_cannot_be_kept_leaves_the_state() -> None:
    state = train.init(PARAMS[:1], OPTIMIZER)
    step = train.step(deep, OPTIMIZER, memory="100 kB")
    with pytest.raises(BudgetError, match="training step of deep needs more") as raised:
        step(state, X)
    assert "f32[" in raised.value.got and "test_train_memory.py" in raised.value.got
    assert raised.value.least > 0 and "a larger accumulate=" in raised.value.do
    after, _ = train.step(deep, OPTIMIZER)(state, X)  # its buffers are there
    assert int(after.step) == 1


@pytest.mark.long
def test_the_budget_is_one_of_each_device() -> None:
    mesh = jax.make_mesh((4,), ("rows",), (jax.sharding.AxisType.Auto,))
    whole = jax.NamedSharding(mesh, jax.P())
    batch = jax.device_put(draw(1, 4 * ROWS, 16), jax.NamedSharding(mesh, jax.P("rows")))
    made = lambda: jax.device_put(train.init(PARAMS, OPTIMIZER), whole)
    plain = train.step(deep, OPTIMIZER)
    lean = train.step(deep, OPTIMIZER, memory=int(0.7 * peak(plain, made(), batch)))
    after, logs = lean(made(), batch)
    expected, told = plain(made(), batch)
    assert peak(lean, made(), batch) <= 0.7 * peak(plain, made(), batch)
    assert bp.footprint(lean, made(), batch).devices == 4 and lean.compilations == 1
    chex.assert_trees_all_close((after.params, logs), (expected.params, told), rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_fit_trains_within_a_budget() -> None:
    """The compiled program of ``fit`` has the sums of the epoch besides."""
    line = train.supervised(lambda p, x: p["out"] * deep_rows(p["layers"], x), "mse")
    params = {"layers": PARAMS, "out": jnp.ones((), F)}
    x, y = np.asarray(X[:320]), np.asarray(X[:320, 0])
    options: dict[str, Any] = dict(
        optimizer=optax.sgd(0.1), epochs=2, batch_size=256, verbose=0, shuffle=False,
        validation_data=(x[:64], y[:64]),
    )  # fmt: skip
    state, history = train.fit(line, params, x, y, memory=0.8, **options)
    expected, told = train.fit(line, params, x, y, **options)
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-4, atol=1e-5)
    assert history["val_loss"] == pytest.approx(told["val_loss"], rel=1e-4)


def deep_rows(layers: Any, x: Any) -> Any:
    for w, v in layers:
        x = x + jax.nn.gelu(x @ w) @ v
    return x.mean(1)


@pytest.mark.parametrize("memory", ["plenty", 0, -1, 1.5, True])
def test_budgets_that_are_none(memory: Any) -> None:
    with pytest.raises(TrainingError, match="memory cannot be this"):
        train.step(deep, OPTIMIZER, memory=memory)


def test_a_gradient_by_hand_makes_nothing_again() -> None:
    with pytest.raises(TrainingError, match="derived by hand"):
        train.step(deep, OPTIMIZER, memory=0.5, gradient=lambda params, x: params)


def test_a_step_without_its_state_is_refused() -> None:
    step = train.step(deep, OPTIMIZER, memory=0.5)
    with pytest.raises(TrainingError, match="begins with a state"):
        step(PARAMS, X)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TrainingError, match="begins with a state"):
        bp.footprint(step, PARAMS, X)
    with pytest.raises(FootprintError, match=r"deep\(state.*, batch") as raised:
        bp.footprint(step, X)
    assert "1 of them" in raised.value.got
    assert "not called yet" in str(step) and not step.choices
