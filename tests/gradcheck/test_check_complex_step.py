"""The complex step as a witness: exact where a function is analytic, absent where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sampled

import functional_bp as bp
from functional_bp.gradcheck.evaluation import complex_slope, complex_step

MATRIX = np.random.default_rng(0).normal(size=(4, 5))
VECTOR = MATRIX[:, 0]

PIECEWISE_ANALYTIC = {
    "matrix product": (lambda x: x.T @ x, MATRIX),
    "softmax": (jax.nn.softmax, MATRIX),
    "standardized": (lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5), MATRIX),
    "relu": (jax.nn.relu, MATRIX),
    "gelu": (jax.nn.gelu, MATRIX),
    "power": (lambda x: x**3.0, VECTOR),
    "largest": (lambda x: jnp.max(x, axis=0), MATRIX),
    "clip": (lambda x: jnp.clip(x, -0.2, 0.3), MATRIX),
    "scan": (lambda x: jax.lax.scan(lambda h, t: (jnp.tanh(h + t), h), 0.0, x)[1], VECTOR),
    "cond": (lambda x: jax.lax.cond(x[0] > 0, jnp.sin, lambda v: 2 * v, x), VECTOR),
    "convolution": (lambda x: jnp.convolve(x, x), VECTOR),
    "repeated indices": (lambda x: x[jnp.array([0, 0, 2])] ** 2, VECTOR),
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(PIECEWISE_ANALYTIC, 3))
def test_equals_the_jvp_to_rounding(name):
    fun, x = PIECEWISE_ANALYTIC[name]
    rng = np.random.default_rng(1)
    direction, bar = rng.normal(size=x.shape), rng.normal(size=fun(x).shape)
    run = complex_step(lambda a, _: [fun(*a)], [x], ())
    assert run is not None
    found = complex_slope(run, [x], (), [bar], 0, direction)
    tangent = jax.jvp(fun, (jnp.asarray(x),), (jnp.asarray(direction),))[1]
    true = np.asarray(bar) * np.asarray(tangent)
    assert found is not None and found.resolved
    assert abs(found.value - true.sum()) <= 1e-13 * np.abs(true).sum()
    assert found.error <= 1e-12 * np.abs(true).sum()


@pytest.mark.parametrize(
    "fun",
    [
        jax.scipy.special.erf,  # JAX has it for real numbers only
        lambda x: jnp.abs(jnp.fft.rfft(x)),  # complex inside: |z| is not analytic
        lambda x: jax.lax.complex(x, x),
        lambda x: jnp.exp(x.astype(jnp.float32)),  # rounds too much
        jnp.sort,
        lambda x: jax.lax.while_loop(lambda v: v[0] < 9, lambda v: 2 * v, jnp.abs(x) + 1),
    ],
)
def test_absent_where_a_function_cannot_be_continued(fun):
    assert complex_step(lambda a, _: [fun(*a)], [VECTOR], ()) is None


def test_two_steps_that_disagree_are_no_witness():
    drawn = iter([1.0, 2.0])
    run = lambda *_: [np.ones(3), np.full(3, next(drawn))]
    assert complex_slope(run, [np.ones(3)], (), [np.ones(3)], 0, np.ones(3)) is None


def test_a_factor_of_one_plus_a_millionth_is_found_without_a_reference():
    """A factor of 1 + 1e-6 is found by the complex step, and its absence is no fault."""
    forward = lambda x: (jnp.exp(x) * jnp.sin(x), x)

    def backward(x, y_bar):
        return (y_bar * jnp.exp(x) * (jnp.sin(x) + jnp.cos(x)) * (1 + 1e-6),)

    x = jnp.linspace(-1.0, 1.0, 5)
    assert bp.check((forward, backward), x, reference=False).verdict == "wrong"
    right = lambda x, y_bar: (backward(x, y_bar)[0] / (1 + 1e-6),)
    assert bp.check((forward, right), x, reference=False).verdict == "right"
