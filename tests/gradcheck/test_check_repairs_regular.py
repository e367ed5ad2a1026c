"""Faults in matrices, windows, borders and the bodies of loops: kind, line and repair."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled
from traced_disagreements import best, disagree, line_with, normal

from functional_bp.gradcheck.diagnosis.repair.locations import Edit
from functional_bp.gradcheck.diagnosis.repair.program import evaluate, trace
from functional_bp.gradcheck.diagnosis.repair.validate import PATIENCE, Matrices


def image(x, w):
    return lax.conv(x, w, (1, 1), "SAME")


def image_fwd(x, w):
    return image(x, w), (x, w)


def kernel_not_flipped(kept, y_bar):
    x, w = kept
    x_bar = lax.conv(y_bar, w.swapaxes(0, 1), (1, 1), "SAME")  # here
    return x_bar, w_bar_of(x, y_bar)


def channels_not_swapped(kept, y_bar):
    x, w = kept
    x_bar = lax.conv(y_bar, w[:, :, ::-1, ::-1], (1, 1), "SAME")  # here
    return x_bar, w_bar_of(x, y_bar)


def padded_on_one_side(kept, y_bar):
    x, w = kept
    x_bar = lax.conv(y_bar, w[:, :, ::-1, ::-1].swapaxes(0, 1), (1, 1), "SAME")
    first, second = x.swapaxes(0, 1), y_bar.swapaxes(0, 1)
    w_bar = lax.conv_general_dilated(first, second, (1, 1), ((0, 2), (1, 1)))  # here
    return x_bar, w_bar.swapaxes(0, 1)


def w_bar_of(x, y_bar):
    first, second = x.swapaxes(0, 1), y_bar.swapaxes(0, 1)
    return lax.conv_general_dilated(first, second, (1, 1), ((1, 1), (1, 1))).swapaxes(0, 1)


def ring(x):
    return jnp.roll(x, -1) - x


def rolled_the_wrong_way(_, y_bar):
    return (jnp.roll(y_bar, -1) - y_bar,)  # here


def factor(a):
    return jnp.linalg.cholesky((a + a.T) / 2)


def factor_fwd(a):
    return factor(a), factor(a)


def whole_instead_of_triangle(root, root_bar):
    product = root.T @ root_bar  # here
    half = product - 0.5 * jnp.diag(jnp.diag(product))
    inner = jax.scipy.linalg.solve_triangular(root, half + half.T, trans=1, lower=True)
    return (0.5 * jax.scipy.linalg.solve_triangular(root, inner.T, trans=1, lower=True),)


def not_transposed(root, root_bar):
    product = jnp.tril(root.T @ root_bar)
    half = product - 0.5 * jnp.diag(jnp.diag(product))
    inner = jax.scipy.linalg.solve_triangular(root, half + half.T, trans=1, lower=True)
    return (0.5 * jax.scipy.linalg.solve_triangular(root, inner.T, trans=0, lower=True),)  # here


def average(x, alpha):
    def step(y, x_t):
        return (alpha * y + (1 - alpha) * x_t,) * 2

    return jnp.concatenate([x[:1], lax.scan(step, x[0], x[1:])[1]])


def average_fwd(x, alpha):
    y = average(x, alpha)
    return y, (x, alpha, y)


def first_step_forgotten(kept, y_bar):
    x, alpha, y = kept

    def step(s_bar, bar):
        return (bar + alpha * s_bar,) * 2

    s_bar = lax.scan(step, jnp.zeros_like(x[0]), y_bar, reverse=True)[1]
    x_bar = (1 - alpha) * s_bar  # here
    return x_bar, jnp.sum(s_bar[1:] * (y[:-1] - x[1:]))


def states(a, x):
    return lax.scan(lambda h, ax: (ax[0] * h + ax[1],) * 2, jnp.zeros_like(x[0]), (a, x))[1]


def states_fwd(a, x):
    return states(a, x), (a, states(a, x))


def decay_not_carried(kept, y_bar):
    a, h = kept
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

    def step(carry_bar, inputs):
        a_t, before_t, bar = inputs
        h_bar = bar + carry_bar
        return h_bar, (h_bar * before_t, h_bar)  # here

    return lax.scan(step, jnp.zeros_like(h[0]), (a, before, y_bar), reverse=True)[1]


def carry_not_added(kept, y_bar):
    a, h = kept
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

    def step(carry_bar, inputs):
        a_t, before_t, bar = inputs
        h_bar = a_t * bar / a_t  # here
        return a_t * h_bar, (h_bar * before_t, h_bar)

    return lax.scan(step, jnp.zeros_like(h[0]), (a, before, y_bar), reverse=True)[1]


def last_step_comes_first(kept, y_bar):
    a, h = kept
    before = jnp.concatenate([h[-1:], h[:-1]])  # here

    def step(carry_bar, inputs):
        a_t, before_t, bar = inputs
        h_bar = bar + carry_bar
        return a_t * h_bar, (h_bar * before_t, h_bar)

    return lax.scan(step, jnp.zeros_like(h[0]), (a, before, y_bar), reverse=True)[1]


def cell(u, x):
    return lax.scan(lambda h, x_t: (jnp.tanh(h + u @ x_t), None), jnp.zeros(u.shape[0]), x)[0]


def cell_fwd(u, x):
    def step(h, x_t):
        new = jnp.tanh(h + u @ x_t)
        return new, new

    last, after = lax.scan(step, jnp.zeros(u.shape[0]), x)
    return last, (u, x, after)


def weights_not_summed(kept, last_bar):
    u, x, after = kept

    def step(carry, inputs):
        h_bar, u_bar = carry
        x_t, after_t = inputs
        inner_bar = h_bar * (1 - after_t**2)
        u_bar = jnp.outer(inner_bar, x_t)  # here
        return (inner_bar, u_bar), u.T @ inner_bar

    (_, u_bar), x_bar = lax.scan(step, (last_bar, jnp.zeros_like(u)), (x, after), reverse=True)
    return u_bar, x_bar


def stale_operand(kept, last_bar):
    u, x, after = kept
    before = jnp.concatenate([jnp.zeros_like(after[:1]), after[:-1]])

    def step(carry, inputs):
        h_bar, u_bar = carry
        x_t, before_t, after_t = inputs
        inner_bar = h_bar * (1 - after_t**2)
        u_bar = u_bar + jnp.outer(inner_bar, before_t)  # here
        return (inner_bar, u_bar), u.T @ inner_bar

    start = (last_bar, jnp.zeros_like(u))
    (_, u_bar), x_bar = lax.scan(step, start, (x, before, after), reverse=True)
    return u_bar, x_bar


def gate(x, w):
    both = jnp.concatenate([x, w]) ** 2
    return both[:3] + both[3:] + x * w


def gate_fwd(x, w):
    return gate(x, w), (x, w)


def half_of_it_forgotten(kept, y_bar):
    x, w = kept
    both = jnp.concatenate([x, w])
    both_bar = 2 * both * jnp.concatenate([y_bar, y_bar])
    x_bar = w * y_bar  # here
    return x_bar, x * y_bar + both_bar[3:]


def dense(x, w):
    return x @ w


def first_of_the_batch(kept, y_bar):
    x, w = kept
    w_bar = x[0].T @ y_bar[0]  # here
    return y_bar @ w.T, w_bar


IMAGES = (normal(2, 2, 5, 5), normal(2, 2, 3, 3))
MATRIX = np.eye(4) + 0.1 * normal(4, 4) @ normal(4, 4).T
CELL = (0.5 * normal(3, 3), normal(4, 3))
DECAYS = (np.full((5, 3), 0.7) + 0.05 * normal(5, 3), normal(5, 3, seed=1))

PLANTED = [
    (image, image_fwd, kernel_not_flipped, IMAGES, ("reversal",), "jnp.flip("),
    (image, image_fwd, channels_not_swapped, IMAGES, ("transpose",), "jnp.swapaxes("),
    (image, image_fwd, padded_on_one_side, IMAGES, ("off by one",), ""),
    (ring, lambda x: (ring(x), None), rolled_the_wrong_way, (normal(6),), ("off by one",),
     "jnp.roll(y_bar, 1)"),
    (factor, factor_fwd, whole_instead_of_triangle, (MATRIX,), ("wrong function",), "jnp.tril("),
    (factor, factor_fwd, not_transposed, (MATRIX,), ("transpose",), "trans=1"),
    (average, average_fwd, first_step_forgotten, (normal(6, 2), np.array(0.8)), ("border",),
     ".at[0].set(s_bar[0])"),
    (states, states_fwd, decay_not_carried, DECAYS, ("missing factor",), "h_bar * a_t"),
    (states, states_fwd, carry_not_added, DECAYS, ("missing term",), "+ carry_bar"),
    (states, states_fwd, last_step_comes_first, DECAYS, ("border",), "jnp.zeros_like(h[-1:])"),
    (cell, cell_fwd, weights_not_summed, CELL, ("missing term",),
     "jnp.outer(inner_bar, x_t) + u_bar"),
    (cell, cell_fwd, stale_operand, CELL, ("wrong operand",), "jnp.outer(inner_bar, x_t)"),
    (gate, gate_fwd, half_of_it_forgotten, (normal(3), normal(3, seed=1)), ("missing term",),
     "both_bar[:3]"),
    (dense, lambda x, w: (dense(x, w), (x, w)), first_of_the_batch, (normal(2, 3, 4), MATRIX),
     ("missing sum",), "jnp.tensordot(x, y_bar, ((0, 1), (0, 1)))"),
]  # fmt: skip


@pytest.mark.parametrize(("forward", "fwd", "bwd", "arguments", "kinds", "text"),
                         sampled(PLANTED, 3), ids=[p[2].__name__ for p in PLANTED])  # fmt: skip
def test_a_planted_fault_is_named_and_mended(
    forward: Any, fwd: Any, bwd: Any, arguments: Any, kinds: Any, text: str
) -> None:
    found = best(disagree(forward, fwd, bwd, *arguments))
    assert found.kind in kinds, found
    assert found.repair is not None and text in found.repair.after, found.repair
    assert found.where is not None
    assert abs(found.where.line - line_with(bwd, "here")) <= 1  # of two lines that pass it on


def test_a_wrong_factor_of_a_product_is_also_a_wrong_constant() -> None:
    def bwd(x, y_bar):
        return (3.0 * x * y_bar,)

    found = best(disagree(lambda x: x * x, lambda x: (x * x, x), bwd, normal(5)))
    assert found.kind == "wrong constant" and found.also == ("factor",)


def test_a_matrix_predicts_what_an_edit_does() -> None:
    def affine(x, w):
        y = x * 3.0
        return [(y @ w).sum(0) + 1.0]

    x, w = normal(2, 3), normal(3, 4)
    program = trace(affine, x, w)
    values = program.run([x, w])
    matrices = Matrices(program, lambda outs: np.ravel(outs[0]))
    maker = program.equations[0]
    none: dict[int, Any] = {}
    for _ in range(PATIENCE):
        found = matrices.of(maker.key, values, none)
    assert found is not None
    edit = Edit(maker.key, "sign", "", lambda a, v, c: a[0] - c)
    changed = program.rerun(values, {maker.key: lambda a, v: a[0] - 2.0})
    expected = program.outs(changed)[0]
    np.testing.assert_allclose(found.output(edit, 2.0), expected, rtol=1e-12)


def test_what_is_not_affine_has_no_matrix() -> None:
    program = trace(lambda x: [jnp.tanh(2.0 * x)], normal(3))
    values = program.run([normal(3)])
    matrices = Matrices(program, lambda outs: np.ravel(outs[0]))
    key, none = program.equations[0].key, {}
    assert all(matrices.of(key, values, none) is None for _ in range(2 * PATIENCE))


@pytest.mark.parametrize(
    ("left", "right", "axes"),
    [((3,), (3,), (0, 0)), ((3, 4), (3,), (0, 0)), ((4, 3), (5, 3), (1, 1)), ((3,), (2, 3), (0, 1)),
     ((3, 4), (5, 3), (0, 1)), ((2, 3, 4), (4, 2), (2, 0))],
)  # fmt: skip
def test_a_contraction_in_numpy_is_that_of_jax(left: Any, right: Any, axes: Any) -> None:
    a, b = normal(*left), normal(*right, seed=1)
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    with jax.enable_x64(True):
        wanted = np.asarray(lax.dot_general(a, b, numbers))
    (found,) = evaluate(lax.dot_general_p, {"dimension_numbers": numbers}, [a, b])
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
