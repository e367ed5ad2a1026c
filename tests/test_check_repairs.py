"""Faults planted in small backward passes: the kind, the line and the text of the repair."""

import inspect
import linecache
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from functional_bp.check.diagnosis.repairs.constants import named
from functional_bp.check.diagnosis.repairs.drops import drops
from functional_bp.check.diagnosis.repairs.program import trace
from functional_bp.check.diagnosis.repairs.search import Found, repairs
from functional_bp.check.findings import KINDS
from functional_bp.check.subject import Disagreement, Sample, Subject

SECONDS = 30  # far more than needed: a search that ends early because of the clock is not the test


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def disagree(
    forward: Callable[..., Any],
    fwd: Callable[..., Any],
    bwd: Callable[..., Any],
    *arguments: np.ndarray,
    apart: bool = True,
) -> Disagreement:
    """The disagreement between a hand-written pair and its forward; the first wrong argument."""
    fixed = tuple(a for a in arguments if a.dtype.kind != "f")
    actives = tuple(a for a in arguments if a.dtype.kind == "f")
    rng = np.random.default_rng(1)

    def value(actives: Any, fixed: Any) -> Any:
        return (forward(*actives, *fixed),)

    def residuals(actives: Any, fixed: Any) -> Any:
        return fwd(*actives, *fixed)[1]

    def backward(kept: Any, fixed: Any, bars: Any) -> Any:
        return tuple(bwd(kept, *bars))[: len(actives)]

    def pull(actives: Any, fixed: Any, bars: Any) -> Any:
        out, kept = fwd(*actives, *fixed)
        return (out,), backward(kept, fixed, bars)

    def sample(at: Any) -> Sample:
        outs, pullback = jax.vjp(lambda *a: value(a, fixed), *at)
        bars = tuple(rng.normal(size=out.shape) for out in outs)
        true = pullback(tuple(map(jnp.asarray, bars)))
        claimed = pull(at, fixed, bars)[1]
        arrays = (tuple(map(np.asarray, held)) for held in (outs, claimed, true))
        outs, claimed, true = arrays
        return Sample(at, fixed, bars, outs, claimed, true)

    given = sample(actives)
    masks = [~np.isclose(a, b, 1e-9, 1e-12) for a, b in zip(given.claimed, given.true)]
    subject = Subject(
        "planted", tuple(inspect.signature(forward).parameters)[: len(actives)], actives, fixed,
        value, pull, value, residuals=residuals if apart else None,
        backward=backward if apart else None, source=bwd,
    )  # fmt: skip
    return Disagreement(
        subject,
        next(i for i, mask in enumerate(masks) if mask.any()),
        given,
        masks,
        lambda: sample(tuple(a + 0.3 * rng.normal(size=a.shape) for a in actives)),
    )


def line_with(function: Callable[..., Any], mark: str) -> int:
    """The line of a function that carries a comment."""
    lines, start = inspect.getsourcelines(function)
    return next(start + i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {mark}"))


def best(disagreement: Disagreement) -> Found:
    found = repairs(disagreement, time.monotonic() + SECONDS)
    assert found, "no repair found"
    assert all(one.kind in KINDS for one in found) and len(found) <= 3
    return found[0]


def layer_norm(x, gamma):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * gamma


def layer_norm_fwd(x, gamma):
    mean = x.mean(-1, keepdims=True)
    r = 1 / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
    x_hat = (x - mean) * r
    return x_hat * gamma, (x_hat, r, gamma)


def layer_norm_without_correction(res, y_bar):
    x_hat, r, gamma = res
    x_hat_bar = y_bar * gamma
    inner = (x_hat * x_hat_bar).mean(-1, keepdims=True)  # noqa: F841  (the fault)
    x_bar = r * (x_hat_bar - x_hat_bar.mean(-1, keepdims=True))  # here
    return x_bar, (y_bar * x_hat).sum(0)


def layer_norm_without_gamma(res, y_bar):
    x_hat, r, gamma = res
    x_hat_bar = y_bar  # here
    inner = (x_hat * x_hat_bar).mean(-1, keepdims=True)
    x_bar = r * (x_hat_bar - x_hat_bar.mean(-1, keepdims=True) - x_hat * inner)
    return x_bar, (y_bar * x_hat).sum(0)


def layer_norm_with_a_sum(res, y_bar):
    x_hat, r, gamma = res
    x_hat_bar = y_bar * gamma
    inner = (x_hat * x_hat_bar).sum(-1, keepdims=True)  # here
    x_bar = r * (x_hat_bar - x_hat_bar.mean(-1, keepdims=True) - x_hat * inner)
    return x_bar, (y_bar * x_hat).sum(0)


def layer_norm_wrong_twice(res, y_bar):
    x_hat, r, gamma = res
    x_hat_bar = y_bar * gamma
    inner = (x_hat * x_hat_bar).sum(-1, keepdims=True)  # here
    x_bar = r * (x_hat_bar + x_hat_bar.mean(-1, keepdims=True) - x_hat * inner)
    return x_bar, (y_bar * x_hat).sum(0)


def softmax_fwd(x):
    y = jax.nn.softmax(x, axis=-1)
    return y, (y,)


def softmax_without_keepdims(res, y_bar):
    (y,) = res
    inner = jnp.sum(y * y_bar, axis=-1)  # here
    return (y * (y_bar - inner),)


def softmax_the_other_way(res, y_bar):
    (y,) = res
    inner = jnp.sum(y * y_bar, axis=-1, keepdims=True)
    return (y * (inner - y_bar),)  # here


def dense(x, W, b):
    return jnp.tanh(x @ W + b)


def dense_fwd(x, W, b):
    y = dense(x, W, b)
    return y, (x, W, y)


def dense_untransposed(res, y_bar):
    x, W, y = res
    z_bar = y_bar * (1 - y**2)
    return z_bar @ W.T, x @ z_bar, z_bar.sum(0)  # here


def dense_one_row(res, y_bar):
    x, W, y = res
    z_bar = y_bar * (1 - y**2)
    return z_bar @ W.T, x.T @ z_bar, z_bar[0]  # here


def dense_slope(res, y_bar):
    x, W, y = res
    z_bar = y_bar * (1 - y)  # here
    return z_bar @ W.T, x.T @ z_bar, z_bar.sum(0)


def rnn(x, h0, W):
    def step(h, x_t):
        h = jnp.tanh(h @ W + x_t)
        return h, h

    return lax.scan(step, h0, x)[1]


def rnn_fwd(x, h0, W):
    ys = rnn(x, h0, W)
    return ys, (ys, jnp.concatenate([h0[None], ys[:-1]]), W)


def rnn_stale(res, y_bar):
    ys, before, W = res

    def step(carry, slices):
        h_bar, W_bar = carry
        y_bar_t, h, h_before = slices
        z_bar = (h_bar + y_bar_t) * (1 - h**2)
        W_bar = W_bar + jnp.outer(h, z_bar)  # here
        return (z_bar @ W.T, W_bar), z_bar

    start = jnp.zeros_like(ys[0]), jnp.zeros_like(W)
    (h0_bar, W_bar), x_bar = lax.scan(step, start, (y_bar, ys, before), reverse=True)
    return x_bar, h0_bar, W_bar


def rnn_by_hand(res, y_bar):
    ys, before, W = res
    h_bar, W_bar, x_bars = jnp.zeros_like(ys[0]), jnp.zeros_like(W), []
    for t in reversed(range(5)):
        z_bar = (h_bar + y_bar[t]) * (1 + ys[t] ** 2)  # here
        W_bar += jnp.outer(before[t], z_bar)
        h_bar = z_bar @ W.T
        x_bars.append(z_bar)
    return jnp.stack(x_bars[::-1]), h_bar, W_bar


def rnn_forwards(res, y_bar):
    ys, before, W = res

    def step(carry, slices):
        h_bar, W_bar = carry
        y_bar_t, h, h_before = slices
        z_bar = (h_bar + y_bar_t) * (1 - h**2)
        return (z_bar @ W.T, W_bar + jnp.outer(h_before, z_bar)), z_bar

    start = jnp.zeros_like(ys[0]), jnp.zeros_like(W)
    (h0_bar, W_bar), x_bar = lax.scan(step, start, (y_bar, ys, before))  # here
    return x_bar, h0_bar, W_bar


def gelu(x):
    return 0.5 * x * (1 + jnp.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


def gelu_fwd(x):
    return gelu(x), x


def gelu_two_for_three(x, y_bar):
    t = jnp.tanh(0.7978845608028654 * (x + 0.044715 * x**3))
    slope = 0.7978845608028654 * (1 + 2 * 0.044715 * x**2)  # here
    return (y_bar * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * slope),)


def gelu_rounded(x, y_bar):
    c = 0.8  # here
    t = jnp.tanh(c * (x + 0.044715 * x**3))
    slope = c * (1 + 3 * 0.044715 * x**2)
    return (y_bar * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * slope),)


def conv(x, w):
    padded = jnp.pad(x, (1, 1))
    return w[0] * padded[:-2] + w[1] * padded[1:-1] + w[2] * padded[2:]


def conv_fwd(x, w):
    return conv(x, w), (x, w)


def conv_shifted(res, y_bar):
    x, w = res
    padded = jnp.pad(y_bar, (2, 0))  # here
    return w[2] * padded[:-2] + w[1] * padded[1:-1] + w[0] * padded[2:], w


def conv_edge(res, y_bar):
    x, w = res
    padded = jnp.pad(y_bar, (1, 1), mode="edge")  # here
    return w[2] * padded[:-2] + w[1] * padded[1:-1] + w[0] * padded[2:], w


def embedding(table, ids):
    return 2 * table[ids]


def embedding_fwd(table, ids):
    return embedding(table, ids), (table, ids)


def embedding_set(res, y_bar):
    table, ids = res
    return (jnp.zeros_like(table).at[ids].set(2 * y_bar),)  # here


def gated(x):
    return jnp.where(x > 0.5, x, 0.1 * x)


def gated_fwd(x):
    return gated(x), x


def gated_elsewhere(x, y_bar):
    return (jnp.where(x > 0, y_bar, 0.1 * y_bar),)  # here


NORM = (layer_norm, layer_norm_fwd)
SOFTMAX = (jax.nn.softmax, softmax_fwd)
DENSE, RNN, GELU, CONV = (dense, dense_fwd), (rnn, rnn_fwd), (gelu, gelu_fwd), (conv, conv_fwd)
TABLE = (embedding, embedding_fwd)
ROWS = (normal(4, 6), normal(6))
SQUARE = (normal(4, 4), 0.5 * normal(4, 4, seed=1), normal(4))
STEPS = (normal(5, 3), normal(3), 0.5 * normal(3, 3))

FAULTS = [
    (NORM, layer_norm_without_correction, ROWS, "missing term", "- x_hat * inner"),
    (NORM, layer_norm_without_gamma, ROWS, "missing factor", "y_bar * gamma"),
    (NORM, layer_norm_with_a_sum, ROWS, "mean or sum",
     "(x_hat * x_hat_bar).mean(-1, keepdims=True)"),
    (SOFTMAX, softmax_without_keepdims, (normal(5, 5),), "axis",
     "jnp.sum(y * y_bar, axis=-1, keepdims=True)"),
    (SOFTMAX, softmax_the_other_way, (normal(3, 5),), "sign", "y_bar - inner"),
    (DENSE, dense_untransposed, SQUARE, "transpose", "x.T @ z_bar"),
    (DENSE, dense_one_row, SQUARE, "missing sum", "z_bar.sum(0)"),
    (DENSE, dense_slope, SQUARE, "missing factor", "1 - y ** 2"),
    (RNN, rnn_stale, STEPS, "wrong operand", "jnp.outer(h_before, z_bar)"),
    (RNN, rnn_forwards, STEPS, "reversal", "reverse=True"),
    (RNN, rnn_by_hand, STEPS, "sign", "1 - ys[t] ** 2"),
    (GELU, gelu_two_for_three, (normal(7),), "wrong constant", "3 * 0.044715 * x ** 2"),
    (GELU, gelu_rounded, (normal(7),), "wrong constant", "jnp.sqrt(2 / jnp.pi)"),
    (CONV, conv_shifted, (normal(8), normal(3)), "off by one", "jnp.pad(y_bar, (1, 1))"),
    (CONV, conv_edge, (normal(8), normal(3)), "border", "mode='constant'"),
    (TABLE, embedding_set, (normal(6, 4), np.array([0, 2, 2, 5])), "repeats", ".add(2 * y_bar)"),
    ((gated, gated_fwd), gated_elsewhere, (normal(40),), "region", "x > 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "bwd", "arguments", "kind", "text"), FAULTS, ids=[f[1].__name__ for f in FAULTS]
)
def test_a_planted_fault_is_named_with_line_and_repair(pair, bwd, arguments, kind, text):
    found = best(disagree(*pair, bwd, *arguments))
    assert found.kind == kind, found
    assert found.place is not None and found.place.file == __file__
    assert found.place.line == line_with(bwd, "here")
    assert found.place.text == linecache.getline(__file__, found.place.line).strip()
    assert found.repair is not None and text in found.repair.after, found.repair


@pytest.mark.parametrize(
    ("pair", "bwd", "arguments", "kind"),
    [FAULTS[1][:4], FAULTS[4][:4], FAULTS[8][:4], FAULTS[11][:4]],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_without_the_backward_alone_the_whole_pull_is_searched(pair, bwd, arguments, kind):
    found = best(disagree(*pair, bwd, *arguments, apart=False))
    assert found.kind == kind, found
    assert found.place is not None and found.place.line == line_with(bwd, "here")


def test_two_faults_at_once():
    found = best(disagree(*NORM, layer_norm_wrong_twice, *ROWS))
    assert "two things at once" in found.message
    lines = {line_with(layer_norm_wrong_twice, "here") + i for i in (0, 1)}
    assert all(f"(line {line})" in found.message for line in lines)
    assert found.repair is not None and ".mean(-1, keepdims=True)" in found.repair.after


def test_the_path_that_is_dropped_is_named_by_the_forward():
    disagreement = disagree(*NORM, layer_norm_without_correction, *ROWS)
    (first, *_) = drops(disagreement, time.monotonic() + SECONDS)
    assert first.kind == "missing term" and "is dropped" in first.message
    assert "jnp.sqrt(variance + 1e-05)" in first.message
    assert first.place is not None and "jnp.sqrt(variance + 1e-5)" in first.place.text


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
    (first, *_) = drops(disagreement, time.monotonic() + SECONDS)
    assert first.kind == "sign" and "`x_t` in `h @ W + x_t`" in first.message


def test_nothing_is_found_where_no_edit_helps():
    def noise(x, y_bar):
        return (y_bar * jnp.sin(17 * x) ** 2 + jnp.cumsum(x),)

    disagreement = disagree(*GELU, noise, normal(7))
    assert repairs(disagreement, time.monotonic() + 3) == []
    assert drops(disagreement, time.monotonic() + 3) == []


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
    assert repairs(disagreement, time.monotonic() - 1) == []
    assert drops(disagreement, time.monotonic() - 1) == []


def test_without_source_the_place_has_no_text():
    total = "(y * y_bar).sum(-1, keepdims=True)"
    code = f"def bwd(res, y_bar):\n    (y,) = res\n    return (y * y_bar + y * {total},)\n"
    scope: dict[str, Any] = {}
    exec(compile(code, "nowhere.py", "exec"), scope)
    found = best(disagree(*SOFTMAX, scope["bwd"], normal(3, 5)))
    assert found.kind == "sign"
    assert found.place is not None and str(found.place) == "nowhere.py:3" and not found.place.text
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
    assert (constant and constant.name) == name
    if constant is not None:
        written = eval(constant.text, {"jnp": np})
        np.testing.assert_allclose(written, value, rtol=1e-6)
