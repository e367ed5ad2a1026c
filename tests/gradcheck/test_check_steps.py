"""A derivation, step by step: the first wrong step, and the later ones given the earlier."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sampled

import functional_bp as bp
from functional_bp.gradcheck.steps import check_steps

rng = np.random.default_rng(0)
PARAMS = {"W1": rng.standard_normal((4, 3)), "W2": rng.standard_normal((2, 4))}
X, Y = rng.standard_normal(3), rng.standard_normal(2)


def loss(params, x, y):
    z = bp.name(params["W1"] @ x, "z")
    h = bp.name(jnp.tanh(z), "h")
    o = bp.name(params["W2"] @ h, "o")
    return 0.5 * jnp.sum((o - y) ** 2) + 0.05 * jnp.sum(params["W1"] ** 2)


RIGHT: dict[str, Any] = {
    "o": lambda o, y: o - y,
    "W2": lambda o_bar, h: jnp.outer(o_bar, h),
    "h": lambda o_bar, W2: W2.T @ o_bar,
    "z": lambda h_bar, h: h_bar * (1 - h * h),
    "W1": lambda z_bar, x, W1: jnp.outer(z_bar, x) + 0.1 * W1,
}


def test_a_right_derivation() -> None:
    report = check_steps(loss, PARAMS, X, Y, claims=RIGHT)
    assert report.ok and not report.notes
    assert [row.checked for row in report.rows] == [
        "cotangent of o", "cotangent of h", "cotangent of z",
        "cotangent of params['W2']", "cotangent of params['W1']",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("step", "claim", "argument"),
    sampled(
        [
            ("o", lambda o, y: y - o, "o"),
            ("h", lambda o_bar, W2: 2 * W2.T @ o_bar, "h"),
            ("z", lambda h_bar, h: h_bar * (1 - h), "z"),
            ("W1", lambda z_bar, x: jnp.outer(z_bar, x), "params['W1']"),
        ],
        2,
    ),
)
def test_the_first_wrong_step_is_named_and_the_later_follow(
    step: str, claim: Any, argument: str
) -> None:
    report = check_steps(loss, PARAMS, X, Y, claims={**RIGHT, step: claim})
    assert [f.argument for f in report.findings] == [argument]
    assert f"first wrong step is the cotangent of {argument}" in report.notes[0]
    others = [row for row in report.rows if not row.checked.endswith(f" {argument}")]
    assert all(row.outcome == "right" for row in others)


def test_values_of_an_autodiff_run_and_values_rounded_on_paper() -> None:
    gradient = jax.grad(loss)(PARAMS, X, Y)
    values = {"W1": gradient["W1"], "W2": np.round(np.asarray(gradient["W2"]), 2)}
    assert check_steps(loss, PARAMS, X, Y, claims=values).ok
    assert not check_steps(loss, PARAMS, X, Y, claims={"W1": -gradient["W1"]}).ok
    off = {"W2": np.round(np.asarray(gradient["W2"]), 2) + 0.02}
    assert not check_steps(loss, PARAMS, X, Y, claims=off).ok


def test_two_independent_errors_are_two_findings() -> None:
    claims = {**RIGHT, "h": lambda o_bar, W2: -W2.T @ o_bar, "W2": lambda h, o_bar: -RIGHT["W2"](
        o_bar, h)}  # fmt: skip
    report = check_steps(loss, PARAMS, X, Y, claims=claims)
    assert [f.argument for f in report.findings] == ["h", "params['W2']"]
    assert any("z is not the true one, but it follows rightly" in note for note in report.notes)


def test_names_inside_jit() -> None:
    inner = jax.jit(lambda x: bp.name(jnp.sin(x), "s"))
    outer = lambda x: jnp.sum(inner(x) ** 2)
    claims = {"s": lambda s: 2 * s, "x": lambda s_bar, x: s_bar * jnp.cos(x)}
    assert check_steps(outer, X, claims=claims).ok
    assert not check_steps(outer, X, claims={**claims, "x": lambda s_bar, x: s_bar * x}).ok


def test_bad_claims_are_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing is called 'q'[\s\S]*z, h, o[\s\S]*bp.name"):
        check_steps(loss, PARAMS, X, Y, claims={"q": 1.0})
    with pytest.raises(ValueError, match=r"claim for 'o' asks for q"):
        check_steps(loss, PARAMS, X, Y, claims={"o": lambda q: q})
    with pytest.raises(ValueError, match="two intermediates are called 'a'"):
        check_steps(lambda x: jnp.sum(bp.name(bp.name(x, "a") * 2, "a")), X, claims={"a": X})
    with pytest.raises(TypeError, match="no single gradient to derive"):
        check_steps(jnp.sin, X, claims={"x": X})
    wrong_shape = check_steps(loss, PARAMS, X, Y, claims={"o": np.zeros(5)})
    assert [f.kind for f in wrong_shape.findings] == ["structure"]


def on_paper(decimals: int, **signs: int) -> dict[str, Any]:
    """The true cotangents of every step, rounded; some with another sign."""
    found = bp.cotangents(loss, ["o", "h", "z"])(PARAMS, X, Y)
    gradient = jax.grad(loss)(PARAMS, X, Y)
    every = {**dict(zip(["o", "h", "z"], found.values())), **gradient}
    return {
        step: np.round(signs.get(step, 1) * np.asarray(bar), decimals)
        for step, bar in every.items()
    }


@pytest.mark.parametrize("decimals", sampled([2, 3, 5], 9))
def test_a_derivation_in_rounded_numbers_is_right(decimals: int) -> None:
    """What follows from rounded numbers is off by more than its own rounding."""
    report = check_steps(loss, PARAMS, X, Y, claims=on_paper(decimals))
    assert report.ok and not report.notes
    assert max(row.error for row in report.rows) > 0.3 * 10.0**-decimals


@pytest.mark.parametrize("decimals", [2, 4])
def test_a_wrong_sign_among_rounded_numbers_is_named(decimals: int) -> None:
    report = check_steps(loss, PARAMS, X, Y, claims=on_paper(decimals, h=-1, z=-1))
    assert [(f.argument, f.kind) for f in report.findings][:1] == [("h", "sign")]
    assert "z" not in [f.argument for f in report.findings]


def neuron(w0, x0, w1, x1, w2):
    d = bp.name(w0 * x0 + w1 * x1 + w2, "d")
    f = bp.name(jnp.exp(bp.name(-d, "e")), "f")
    return 1 / bp.name(1 + f, "g")


def test_the_numbers_that_a_textbook_prints_are_right() -> None:
    """CS231n's sigmoid neuron, with two decimals: a float does not know that it was −0.20."""
    args = (2.0, -1.0, -3.0, -2.0, -3.0)
    claims = {"w0": -0.20, "x0": 0.39, "w1": -0.39, "x1": -0.59, "w2": 0.20}
    steps = {"g": -0.53, "f": -0.53, "e": -0.20, "d": 0.20}
    assert bp.check(neuron, *args, claims=claims).ok
    assert check_steps(neuron, *args, claims={**steps, **claims}).ok
    wrong = check_steps(neuron, *args, claims={**steps, **claims, "x1": 0.59})
    assert [(f.argument, f.kind) for f in wrong.findings] == [("x1", "sign")]


def test_digits_that_are_too_few_decide_nothing() -> None:
    """100 · (0.01 ± 0.005): neither 1.2 nor its half is right or wrong."""

    def scaled(w: Any, x: Any) -> Any:
        z = bp.name(100.0 * w, "z")
        return jnp.sum(z * x)

    w, x = jnp.float64(2.0), jnp.float64(0.012)
    coarse = check_steps(scaled, w, x, claims={"z": 0.01, "w": 1.2})
    assert coarse.verdict == "inconclusive" and "write down more" in coarse.reasons[0]
    assert check_steps(scaled, w, x, claims={"z": 0.012, "w": 1.2}).ok
    assert not check_steps(scaled, w, x, claims={"z": 0.012, "w": -1.2}).ok
