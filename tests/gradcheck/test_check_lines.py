"""The lines that a finding is about: of what is kept, in loops, of casts; from a graph or text."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.core import Tracer
from traced_disagreements import SECONDS, best, disagree, line_with, normal

from functional_bp.gradcheck.clock import now
from functional_bp.gradcheck.diagnosis.diagnose import (
    diagnose,
    line_of_cotangent,
    line_of_overflow,
    lines_of,
)
from functional_bp.gradcheck.diagnosis.patterns.places import round_between


def softmax_fwd_stale(x):
    y = jax.nn.softmax(x)
    return y, (x, y)  # here


def softmax_of_residuals(res, y_bar):
    y, _ = res
    return (y * (y_bar - jnp.sum(y * y_bar, axis=-1, keepdims=True)),)


def test_a_stale_residual_is_repaired_where_it_is_kept():
    wrong = disagree(jax.nn.softmax, softmax_fwd_stale, softmax_of_residuals, normal(3, 5))
    found = best(wrong)
    assert found.kind == "wrong operand", found
    assert found.where is not None and found.where.line == line_with(softmax_fwd_stale, "here")
    assert found.repair is not None and (found.repair.before, found.repair.after) == ("x", "y")


def average(x, alpha):
    step = lambda y, x_t: (alpha * y + x_t,) * 2
    return lax.scan(step, jnp.zeros(2), x)[1]


def average_fwd(x, alpha):
    return average(x, alpha), (alpha, average(x, alpha))


def average_undamped(res, y_bar):
    alpha, y = res

    def step(s, y_bar_t):
        return (y_bar_t + s,) * 2  # here

    s = lax.scan(step, jnp.zeros(2), y_bar, reverse=True)[1]
    return s, jnp.sum(s[1:] * y[:-1])


def test_an_edit_in_a_loop_reads_a_value_from_outside():
    found = best(disagree(average, average_fwd, average_undamped, normal(6, 2), np.array(0.6)))
    assert found.where is not None and found.where.line == line_with(average_undamped, "here")
    assert found.repair is not None and found.repair.after == "y_bar_t + s * alpha"


def mean_of_squares(x):
    return jnp.sum(x**2) / x.shape[0]


def over_the_wrong_axis(x, y_bar):
    x_bar = 2 * x / x.shape[1]  # here
    return (y_bar * x_bar,)


def test_a_wrong_divisor_is_found_in_its_own_line():
    wrong = disagree(
        mean_of_squares, lambda x: (mean_of_squares(x), x), over_the_wrong_axis, normal(8, 5)
    )
    found = best(wrong)
    assert found.kind == "wrong constant" and "N = 8, not 5" in found.message
    assert found.where is not None and found.where.line == line_with(over_the_wrong_axis, "here")


def rounded(x, y_bar):
    slope = jnp.cos(x.astype(jnp.bfloat16)).astype(x.dtype)  # here
    return (slope * y_bar,)


def test_a_cast_that_loses_digits_is_named():
    found = best(disagree(jnp.sin, lambda x: (jnp.sin(x), x), rounded, normal(7)))
    assert found.kind == "precision"
    assert found.where is not None and found.where.line == line_with(rounded, "here")
    assert found.repair is not None and found.repair.after == "x"


def unconjugated(z, y_bar):
    return (jnp.fft.irfft(jnp.fft.rfft(y_bar) * jnp.fft.rfft(z), n=z.shape[0]),)


def test_a_conjugate_that_is_missing():
    def twisted(x):
        return 0.5 * jnp.fft.irfft(jnp.fft.rfft(x) ** 2, n=x.shape[0])

    found = best(disagree(twisted, lambda x: (twisted(x), x), unconjugated, normal(8)))
    assert found.kind == "wrong function"
    assert found.repair is not None and "jnp.conj(jnp.fft.rfft(z))" in found.repair.after


def half_of_a_square(a, y_bar):
    return (y_bar @ a.T,)


def test_a_formula_for_what_is_missing_becomes_a_repair():
    wrong = disagree(lambda a: a @ a, lambda a: (a @ a, a), half_of_a_square, normal(4, 4))
    found = diagnose(wrong, now() + SECONDS)
    assert found.kind == "missing term"
    assert found.repair is not None and found.repair.after == "y_bar @ a.T + a.T @ y_bar"


def scaled_silu(v, s):
    return s * v * jax.nn.sigmoid(v)


def half_of_scaled_silu(res, g):
    v, s = res
    gate = jax.nn.sigmoid(v)
    return g * s * gate, jnp.sum(g * v * gate)  # the formula for what is missing needs the output


@pytest.mark.long
def test_a_repair_is_written_in_names_that_are_there():
    wrong = disagree(
        scaled_silu, lambda v, s: (scaled_silu(v, s), (v, s)), half_of_scaled_silu,
        normal(5), np.array(1.7),
    )  # fmt: skip
    found = diagnose(wrong, now() + SECONDS)
    known = {"v", "s", "g", "gate", "res", "jnp", "jax"}
    names = re.findall(r"(?<![\w.])[a-z]\w*", found.repair.after if found.repair else "")
    assert found.kind in ("missing term", "missing factor", "wrong function")
    assert set(names) <= known


def weight_of_a_layer(res, g):
    x, w, y = res
    return (g * (1 - y**2)) @ w.T, x.T @ g


def test_a_variable_called_x_is_no_place_holder():
    wrong = disagree(
        lambda x, w: jnp.tanh(x @ w), lambda x, w: (y := jnp.tanh(x @ w), (x, w, y)),
        weight_of_a_layer, normal(4, 3), normal(3, 2),
    )  # fmt: skip
    found = diagnose(wrong, now() + SECONDS)
    told = " ".join([found.message, *found.explanations])
    assert "x.T @ " in told and "y_bar.T @ " not in told


def overflowing(x, y_bar):
    slope = jnp.exp(x)  # here
    return (y_bar * (slope / (1 + slope)),)


def test_the_first_line_that_is_not_finite():
    x = np.array([1.0, 800.0])
    wrong = disagree(jax.nn.softplus, lambda x: (jax.nn.softplus(x), x), overflowing, x)
    place = line_of_overflow(wrong.subject, (x,), (), (np.ones(2),))
    assert place is not None and place.line == line_with(overflowing, "here")
    assert line_of_overflow(wrong.subject, (x / 800,), (), (np.ones(2),)) is None


def counted(x, y_bar, calls=[]):  # noqa: B006
    calls.append(1)  # remembered
    if isinstance(x, Tracer):  # asked
        noise = np.random.default_rng().normal()  # drawn
        y_bar = y_bar + noise
    return (lax.stop_gradient(x) * y_bar,)  # stopped


@pytest.mark.parametrize(
    ("kind", "mark"),
    [("hidden state", "remembered"), ("not deterministic", "drawn"), ("jit", "asked"),
     ("second order", "stopped"), ("structure", "stopped")],
)  # fmt: skip
def test_what_leaves_no_graph_is_found_in_the_text(kind: str, mark: str):
    subject: Any = disagree(jnp.square, lambda x: (x**2, x), counted, normal(3)).subject
    assert lines_of(subject, kind)[0].line == line_with(counted, mark)


def two_cotangents(res, y_bar):
    x, w = res
    w_bar = jnp.sum(x * y_bar)
    x_bar = jnp.sin(w) * y_bar  # here
    return x_bar, w_bar


def test_the_line_of_a_cotangent_feeds_no_right_one():
    wrong = disagree(
        lambda x, w: w * x, lambda x, w: (w * x, (x, w)), two_cotangents, normal(3), np.array(0.5)
    )
    place = line_of_cotangent(wrong.subject, "x", ["w"])
    assert place is not None and place.line == line_with(two_cotangents, "here")


def test_a_threshold_in_the_code_comes_before_a_round_one():
    assert round_between(-11.2, -8.7) == -10
    assert round_between(-11.2, -8.7, known=(0.0, -9.0)) == -9
    assert round_between(-11.2, -8.7, up=False, known=(-9.0,)) == -9
