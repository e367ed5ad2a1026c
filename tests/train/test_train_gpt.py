"""``train.models.gpt`` against its equations in NumPy, head by head, and what it generates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_bp as bp
from functional_bp import train
from functional_bp.errors import TrainingError
from functional_bp.train.models import gpt

# In float64: a few hundred roundings of 1e-16 of numbers near 1.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-11}
KEY = jax.random.key(3)
OPTIONS = {"width": 8, "layers": 2, "heads": 2, "context": 6}
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6))


def drawn(tied: bool) -> Any:
    """Parameters none of which is zero or one."""
    rng = np.random.default_rng(1)
    params = jax.eval_shape(lambda: gpt.init(KEY, 11, tied=tied, **OPTIONS))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape)), params)


def norm(x: Any, gain: Any, shift: Any) -> Any:
    return gain * (x - x.mean()) / np.sqrt(x.var() + 1e-5) + shift


def attended(p: Any, xs: np.ndarray) -> np.ndarray:
    """One sequence, one head and one position after the other."""
    out = np.zeros_like(xs) + p["bO"]
    for h in range(p["WQ"].shape[1]):
        q, k, v = (xs @ p[f"W{n}"][:, h] + p[f"b{n}"][h] for n in "QKV")
        for t in range(len(xs)):
            scores = np.array([q[t] @ k[s] for s in range(t + 1)]) / np.sqrt(q.shape[1])
            weights = np.exp(scores) / np.exp(scores).sum()
            out[t] += (weights @ v[: t + 1]) @ p["WO"][h]
    return out


def looped(params: Any, tokens: np.ndarray) -> np.ndarray:
    params = jax.tree.map(np.asarray, params)
    xs = params["E"][tokens] + params["P"][: len(tokens)]
    for layer in range(len(params["blocks"]["WQ"])):
        p = {name: leaf[layer] for name, leaf in params["blocks"].items()}
        xs = xs + attended(p, np.stack([norm(x, p["g1"], p["s1"]) for x in xs]))
        for t, x in enumerate(xs):
            a = norm(x, p["g2"], p["s2"]) @ p["W1"] + p["b1"]
            gelu = a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
            xs[t] = x + gelu @ p["W2"] + p["b2"]
    head = params["W"] if "W" in params else params["E"].T
    return np.stack([norm(x, params["g"], params["s"]) @ head for x in xs])


@pytest.mark.parametrize("length", [4, pytest.param(6, marks=pytest.mark.long)])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits(tied: bool, length: int) -> None:
    params, tokens = drawn(tied), TOKENS[:, :length]
    expected = np.stack([looped(params, sequence) for sequence in tokens])
    np.testing.assert_allclose(jax.jit(gpt.apply)(params, tokens), expected, **TOLERANCE)


def test_no_position_sees_a_later_one() -> None:
    params, other = drawn(tied=True), TOKENS.copy()
    other[:, 3] += 1 - 2 * (other[:, 3] == 10)
    model = jax.jit(gpt.apply)
    before, after = model(params, TOKENS), model(params, other)
    np.testing.assert_allclose(before[:, :3], after[:, :3], **TOLERANCE)
    assert np.min(np.max(np.abs(before - after)[:, 3:], axis=-1)) > 1e-3


def test_the_gradient_is_jax_s_and_a_tied_head_adds_to_the_embedding() -> None:
    def loss(params: Any) -> Any:
        return jnp.mean(jnp.square(gpt.apply(params, TOKENS)))

    tied = drawn(tied=True)
    ours, theirs = jax.jit(bp.grad(loss))(tied), jax.jit(jax.grad(loss))(tied)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), ours, theirs)
    untied = jax.jit(bp.grad(loss))({**tied, "W": tied["E"].T})  # the two uses of E apart
    np.testing.assert_allclose(ours["E"], untied["E"] + untied["W"].T, **TOLERANCE)


def test_first_weights() -> None:
    params = jax.jit(lambda key: gpt.init(key, 100, layers=8, context=32))(KEY)
    deviation = jax.tree.map(lambda leaf: float(leaf.std()), params)
    # 2000 numbers or more: their deviation is within 5 % of the distribution's (three sigmas).
    for name in ("WQ", "WK", "WV", "W1"):
        assert deviation["blocks"][name] == pytest.approx(0.02, rel=0.05)
    assert deviation["E"] == pytest.approx(0.02, rel=0.05)
    for name in ("WO", "W2"):
        assert deviation["blocks"][name] == pytest.approx(0.02 / 4, rel=0.05)
    assert params["blocks"]["WQ"].shape == (8, 64, 4, 16) and "W" not in params


def greedy(params: Any, tokens: np.ndarray, count: int) -> np.ndarray:
    """The likeliest token after the last six, again and again."""
    model = jax.jit(gpt.apply)
    for _ in range(count):
        logits = model(params, tokens[:, -OPTIONS["context"] :])[:, -1]
        tokens = np.concatenate([tokens, np.argmax(logits, -1)[:, None]], axis=1)
    return tokens


@pytest.mark.parametrize(
    ("begun", "count"), [(2, 9), pytest.param(6, 2, marks=pytest.mark.long), (1, 0)]
)
def test_generate_at_temperature_zero_takes_the_likeliest(begun: int, count: int) -> None:
    params, tokens = drawn(tied=True), TOKENS[:, :begun]
    text = gpt.generate(params, tokens, count, KEY, 0.0)
    np.testing.assert_array_equal(text, greedy(params, tokens, count))


def test_a_beginning_longer_than_the_context() -> None:
    params, tokens = drawn(tied=False), np.tile(TOKENS, 2)
    np.testing.assert_array_equal(
        gpt.generate(params, tokens, 4, KEY, 0.0), greedy(params, tokens, 4)
    )


def test_generate_draws_from_the_softmax_of_logits_over_temperature() -> None:
    params, count, temperature = drawn(tied=True), 4000, 1.5
    tokens = np.full((count, 1), 7)
    logits = np.asarray(gpt.apply(params, tokens[:1]))[0, 0] / temperature
    expected = np.exp(logits) / np.exp(logits).sum()
    found = gpt.generate(params, tokens, 1, KEY, temperature)[:, 1]
    shares = np.bincount(np.asarray(found), minlength=11) / count
    # Four standard deviations of a share, for each of eleven: one seed in 1500 would fail.
    assert np.all(np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1e-3)
    assert np.ptp(expected) > 0.05  # not what an even draw would give


def test_keys_decide() -> None:
    params = drawn(tied=True)
    texts = [gpt.generate(params, TOKENS, 9, jax.random.key(k), 2.0) for k in (0, 0, 1)]
    np.testing.assert_array_equal(texts[0], texts[1])
    assert np.any(texts[0] != texts[2])


@pytest.mark.long
def test_it_learns_to_count() -> None:
    params = gpt.init(KEY, 5, width=16, layers=1, heads=2, context=8)
    text = (np.arange(9) + np.arange(5)[:, None]) % 5
    step = train.step(train.supervised(gpt.apply, "cross_entropy"), optax.adam(0.02))
    state = train.init(params, step.optimizer)
    for _ in range(60):
        state, _ = step(state, (text[:, :-1], text[:, 1:]))
    counted = gpt.generate(state.params, jnp.array([[3]]), 12, KEY, 0.0)
    np.testing.assert_array_equal(counted[0], (3 + np.arange(13)) % 5)


@pytest.mark.parametrize(
    ("call", "texts"),
    [
        (lambda p: gpt.apply(p, np.zeros((2, 7), int)), ["[2,7]", "at most 6", "context"]),
        (lambda p: gpt.apply(p, np.zeros(3, int)), ["[3]", "i32[b,t]"]),
        (lambda p: gpt.generate(p, np.zeros((2, 0), int), 3, KEY), ["[2,0]", "at least one"]),
    ],
)
def test_called_wrongly(call: Any, texts: list[str]) -> None:
    with pytest.raises(TrainingError) as raised:
        call(drawn(tied=True))
    assert all(text in str(raised.value) for text in texts)
