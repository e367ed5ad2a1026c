"""Faults planted in small backward passes: the kind, the line and the text of the repair."""

import linecache
from typing import Any

import faulty_pairs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faulty_pairs import (
    FAULTS,
    GELU,
    NORM,
    ROWS,
    SOFTMAX,
    STEPS,
    layer_norm_without_correction,
    layer_norm_wrong_twice,
    rnn,
    rnn_fwd,
    softmax_the_other_way,
)
from jax import lax
from sampling import sampled
from traced_disagreements import SECONDS, best, disagree, line_with, normal, repairs

from functional_bp.gradcheck.clock import TimeLimit, now
from functional_bp.gradcheck.diagnosis.diagnose import diagnose
from functional_bp.gradcheck.diagnosis.expressions import named
from functional_bp.gradcheck.diagnosis.repair import validate
from functional_bp.gradcheck.diagnosis.repair.dropped import drops
from functional_bp.gradcheck.diagnosis.repair.program import trace
from functional_bp.gradcheck.diagnosis.repair.search import single_repairs


@pytest.mark.parametrize(
    ("pair", "bwd", "arguments", "kind", "text"),
    sampled(FAULTS, 3),
    ids=[f[1].__name__ for f in FAULTS],
)
def test_a_planted_fault_is_named_with_line_and_repair(pair, bwd, arguments, kind, text):
    found = best(disagree(*pair, bwd, *arguments))
    assert found.kind == kind, found
    assert found.where is not None and found.where.file == faulty_pairs.__file__
    assert found.where.line == line_with(bwd, "here")
    assert found.where.text == linecache.getline(faulty_pairs.__file__, found.where.line).strip()
    assert found.repair is not None and text in found.repair.after, found.repair


@pytest.mark.parametrize(
    ("pair", "bwd", "arguments", "kind"),
    sampled([FAULTS[k][:4] for k in (1, 4, 8, 11)], 2),
    ids=lambda value: getattr(value, "__name__", None),
)
def test_without_the_backward_alone_the_whole_pull_is_searched(pair, bwd, arguments, kind):
    found = best(disagree(*pair, bwd, *arguments, apart=False))
    assert found.kind == kind, found
    assert found.where is not None and found.where.line == line_with(bwd, "here")


def test_two_faults_at_once():
    found = best(disagree(*NORM, layer_norm_wrong_twice, *ROWS))
    assert "two things at once" in found.message
    lines = {line_with(layer_norm_wrong_twice, "here") + i for i in (0, 1)}
    assert all(f"(line {line})" in found.message for line in lines)
    assert found.repair is not None and ".mean(-1, keepdims=True)" in found.repair.after


def test_the_path_that_is_dropped_is_named_by_the_forward():
    disagreement = disagree(*NORM, layer_norm_without_correction, *ROWS)
    (first, *_) = drops(disagreement, TimeLimit(SECONDS))
    assert first.kind == "missing term" and "is dropped" in first.message
    assert "jnp.sqrt(variance + 1e-05)" in first.message
    assert first.where is not None and "jnp.sqrt(variance + 1e-5)" in first.where.text


def test_a_path_inside_a_scan_is_named():
    def without_inputs(res, y_bar):
        ys, before, W = res

        def step(h_bar, slices):
            y_bar_t, h = slices
            z_bar = (h_bar + y_bar_t) * (1 - h**2)
            return z_bar @ W.T, -z_bar

        h0_bar, x_bar = lax.scan(step, jnp.zeros_like(ys[0]), (y_bar, ys), reverse=True)
        return x_bar, h0_bar, W

    disagreement = disagree(rnn, rnn_fwd, without_inputs, *STEPS)
    (first, *_) = drops(disagreement, TimeLimit(SECONDS))
    assert first.kind == "sign" and "`x_t` in `h @ W + x_t`" in first.message


def test_nothing_is_found_where_no_edit_helps():
    def noise(x, y_bar):
        return (y_bar * jnp.sin(17 * x) ** 2 + jnp.cumsum(x),)

    disagreement = disagree(*GELU, noise, normal(7))
    assert repairs(disagreement, TimeLimit(3)) == []
    assert drops(disagreement, TimeLimit(3)) == []


def test_complex_intermediates():
    def wave(x):
        return jnp.real(x * jnp.exp(1j * x))

    def pull(x, y_bar):
        turned = y_bar * x * jnp.exp(1j * x)
        return (y_bar * jnp.real(jnp.exp(1j * x)) + jnp.imag(turned),)

    found = best(disagree(wave, lambda x: (wave(x), x), pull, normal(7)))
    assert found.kind == "sign" and "should be a subtraction" in found.message


def test_no_time_is_no_repair():
    disagreement = disagree(*SOFTMAX, softmax_the_other_way, normal(3, 5))
    assert repairs(disagreement, TimeLimit(-1)) == []
    assert drops(disagreement, TimeLimit(-1)) == []


def test_a_finding_says_that_time_ended_the_search():
    disagreement = disagree(*SOFTMAX, softmax_the_other_way, normal(3, 5))
    assert not diagnose(disagreement, now() + SECONDS).cut_short
    assert diagnose(disagreement, now() + 0.01).cut_short


def test_a_search_ends_when_enough_has_been_tried(monkeypatch):
    def noise(x, y_bar):
        return (y_bar * jnp.sin(17 * x) ** 2 + jnp.cumsum(x),)

    monkeypatch.setattr(validate, "MOST_ATTEMPTS", 10)
    limit = TimeLimit(SECONDS)
    found, search = single_repairs(disagree(*GELU, noise, normal(7)), limit)
    assert not found and search is not None and not limit.was_reached
    assert 10 <= search.validation.attempts < 20


def test_without_source_the_place_has_no_text():
    total = "(y * y_bar).sum(-1, keepdims=True)"
    code = f"def bwd(res, y_bar):\n    (y,) = res\n    return (y * y_bar + y * {total},)\n"
    scope: dict[str, Any] = {}
    exec(compile(code, "nowhere.py", "exec"), scope)
    found = best(disagree(*SOFTMAX, scope["bwd"], normal(3, 5)))
    assert found.kind == "sign"
    assert found.where is not None and str(found.where) == "nowhere.py:3" and not found.where.text
    assert found.repair is not None and not found.repair.after


def test_a_program_computes_what_jax_computes():
    def function(x, index):
        y = jnp.where(x > 0, jnp.log1p(jnp.abs(x)), lax.rsqrt(2 + jnp.abs(x))) ** 3
        y = jnp.pad(y[::-1], ((1, 0), (0, 2))).T @ x.at[index].add(1.0)[jnp.array([0, 1, 1, 0])]
        carry, ys = lax.scan(lambda c, r: (jnp.tanh(c + r), c * r), y[0], y, reverse=True)
        z = lax.cond(carry.sum() > 0, jnp.sin, jnp.cos, carry)
        z = lax.while_loop(lambda z: z.sum() < 9, lambda z: z + 1, z)
        return [z, jnp.cumsum(ys, 0), jax.nn.softmax(y, 0), lax.cumlogsumexp(y, 1, reverse=True)]

    arguments = normal(3, 4), np.array([0, 2])
    program = trace(function, *arguments)
    outs = program.outs(program.run(arguments))
    for out, wanted in zip(outs, function(*map(jnp.asarray, arguments)), strict=True):
        np.testing.assert_allclose(out, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("value", "name"),
    [(3.0, "3"), (0.044715, "0.044715"), (np.sqrt(2 / np.pi), "√(2/π)"), (1 / 6, "1/N, N = 6"),
     (-0.5, "−½"), (5 / 6, "(N − 1)/N, N = 6"), (np.sqrt(6), "√N, N = 6"), (0.123456789, None)],
)  # fmt: skip
def test_constants_have_names(value, name):
    constant = named(value, [6])
    assert (constant and constant.text) == name
    if constant is not None:
        written = eval(constant.python, {"jnp": np})
        np.testing.assert_allclose(written, value, rtol=1e-6)
