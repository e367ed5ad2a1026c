"""Structure: integers, None and float0, nested arguments, custom_jvp, declared estimators."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.corpus.declare import (
    complex_normal,
    definite,
    integers,
    normal,
    operation,
    uniform,
)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def power(x, exponent):
    """x to a fixed power."""
    return x**exponent


power.defvjp(
    lambda x, exponent: (x**exponent, x),
    lambda exponent, x, y_bar: (y_bar * exponent * x ** (exponent - 1),),
)


def cube(x):
    """x³, by way of the power with its exponent fixed."""
    return power(x, 3)


def cube_truth(x):
    """x³, for autodiff."""
    return x * x * x


@jax.custom_vjp
def take_row(x, index):
    """x[index], with a float0 cotangent for the index."""
    return x[index]


take_row.defvjp(
    lambda x, index: (x[index], (x, index)),
    lambda kept, y_bar: (
        jnp.zeros_like(kept[0]).at[kept[1]].add(y_bar),
        np.zeros(np.shape(kept[1]), jax.dtypes.float0),
    ),
)


@jax.custom_vjp
def nested(params, state):
    """A dictionary of a list and a tuple in, a dictionary out."""
    a, (b, scale) = params["a"], params["rest"]
    return {"sum": a[0] * b + state, "scaled": scale * a[1]}


def nested_bwd(residuals, bars):
    """A cotangent for each leaf, in the same structure."""
    params, _ = residuals
    a, (b, scale) = params["a"], params["rest"]
    a_bar = [bars["sum"] * b, scale * bars["scaled"]]
    rest_bar = (bars["sum"] * a[0], jnp.sum(bars["scaled"] * a[1]))
    return {"a": a_bar, "rest": rest_bar}, bars["sum"]


nested.defvjp(lambda params, state: (nested(params, state), (params, state)), nested_bwd)


@jax.custom_vjp
def unused_argument(x, y):
    """sin x; y has no influence, its cotangent is None."""
    return jnp.sin(x)


unused_argument.defvjp(lambda x, y: (jnp.sin(x), jnp.cos(x)), lambda c, z_bar: (c * z_bar, None))


@jax.custom_vjp
def with_indices(x):
    """The maximum of each row and where it stands: an integer output beside a real one."""
    return jnp.max(x, axis=1), jnp.argmax(x, axis=1)


def with_indices_fwd(x):
    """Keep where the maxima are."""
    values, places = jnp.max(x, axis=1), jnp.argmax(x, axis=1)
    return (values, places), (x, places)


def with_indices_bwd(residuals, bars):
    """The integer output's cotangent is float0 and is not looked at."""
    x, places = residuals
    return (jnp.zeros_like(x).at[jnp.arange(x.shape[0]), places].set(bars[0]),)


with_indices.defvjp(with_indices_fwd, with_indices_bwd)


@jax.custom_jvp
def log_sum_exp(x):
    """log Σ eˣ, by its tangent rule."""
    largest = jnp.max(x)
    return largest + jnp.log(jnp.sum(jnp.exp(x - largest)))


@log_sum_exp.defjvp
def log_sum_exp_jvp(primals, tangents):
    """ẏ = Σ softmax(x) ẋ."""
    (x,), (x_dot,) = primals, tangents
    y = log_sum_exp(x)
    return y, jnp.sum(jnp.exp(x - y) * x_dot)


@jax.custom_jvp
def stable_sigmoid(x):
    """1/(1 + e⁻ˣ), by its tangent rule."""
    small = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0.0, 1.0, small) / (1.0 + small)


@stable_sigmoid.defjvp
def stable_sigmoid_jvp(primals, tangents):
    """ẏ = y (1 − y) ẋ, where 1 − y is the sigmoid of −x."""
    (x,), (x_dot,) = primals, tangents
    y = stable_sigmoid(x)
    return y, y * stable_sigmoid(-x) * x_dot


@jax.custom_vjp
def online_softmax(x):
    """Softmax by one pass that keeps a running maximum and normalizer."""

    def step(carry, x_i):
        largest, total = carry
        new = jnp.maximum(largest, x_i)
        return (new, total * jnp.exp(largest - new) + jnp.exp(x_i - new)), None

    (largest, total), _ = lax.scan(step, (x[0], jnp.ones_like(x[0])), x[1:])
    return jnp.exp(x - largest) / total


def online_softmax_fwd(x):
    """Another algorithm than the primal's; keep its output."""
    p = jax.nn.softmax(x)
    return p, p


online_softmax.defvjp(online_softmax_fwd, lambda p, p_bar: (p * (p_bar - jnp.sum(p * p_bar)),))


@jax.custom_vjp
def conjugate_gradients(a, b):
    """The solution of a x = b, to a relative residual of 10⁻⁶; a counts by its symmetric part."""
    symmetric = (a + a.T) / 2.0
    return jax.scipy.sparse.linalg.cg(lambda x: symmetric @ x, b, tol=1e-6)[0]


def conjugate_gradients_fwd(a, b):
    """Keep a and the solution."""
    x = conjugate_gradients(a, b)
    return x, (a, x)


def conjugate_gradients_bwd(residuals, x_bar):
    """b̄ solves the same system, to the same tolerance."""
    a, x = residuals
    b_bar = conjugate_gradients(a, x_bar)
    return -(jnp.outer(b_bar, x) + jnp.outer(x, b_bar)) / 2.0, b_bar


conjugate_gradients.defvjp(conjugate_gradients_fwd, conjugate_gradients_bwd)


def conjugate_gradients_truth(a, b):
    """The same by elimination."""
    return jnp.linalg.solve((a + a.T) / 2.0, b)


@jax.custom_vjp
def kepler(mean_anomaly):
    """The E with E − ½ sin E = M, by Newton's iteration until it stands still."""
    going = lambda s: (jnp.max(jnp.abs(s[1])) > 1e-7) & (s[2] < 50)

    def better(state):
        e, _, count = state
        change = (e - 0.5 * jnp.sin(e) - mean_anomaly) / (1.0 - 0.5 * jnp.cos(e))
        return e - change, change, count + 1

    return lax.while_loop(going, better, (mean_anomaly, jnp.ones_like(mean_anomaly), 0))[0]


def kepler_fwd(mean_anomaly):
    """Keep the solution."""
    e = kepler(mean_anomaly)
    return e, e


kepler.defvjp(kepler_fwd, lambda e, e_bar: (e_bar / (1.0 - 0.5 * jnp.cos(e)),))


def kepler_truth(mean_anomaly):
    """Forty steps of Newton's iteration, for autodiff."""
    e = mean_anomaly
    for _ in range(8):
        e = e - (e - 0.5 * jnp.sin(e) - mean_anomaly) / (1.0 - 0.5 * jnp.cos(e))
    return e


@jax.custom_vjp
def straight_through(x):
    """round(x), with the gradient of the identity, as declared."""
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, y_bar: (y_bar,))


def straight_through_truth(x):
    """What the gradient is declared to be that of."""
    return x + lax.stop_gradient(jnp.round(x) - x)


@jax.custom_vjp
def reversed_gradient(x):
    """The identity whose gradient is reversed, as declared, for adversarial training."""
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, y_bar: (-y_bar,))


def reversed_gradient_truth(x):
    """What the gradient is declared to be that of."""
    return -x + lax.stop_gradient(2.0 * x)


@jax.custom_vjp
def complex_product(z, w):
    """Σ z w, holomorphic."""
    return jnp.sum(z * w)


complex_product.defvjp(
    lambda z, w: (jnp.sum(z * w), (z, w)),
    lambda kept, y_bar: (y_bar * kept[1], y_bar * kept[0]),
)


@jax.custom_vjp
def phase(z):
    """The angle of complex numbers."""
    return jnp.arctan2(jnp.imag(z), jnp.real(z))


phase.defvjp(
    lambda z: (phase(z), z),
    lambda z, y_bar: (y_bar * -1j * jnp.conj(z) / (jnp.real(z) ** 2 + jnp.imag(z) ** 2),),
)


@jax.custom_vjp
def ground_state(a):
    """The lowest eigenvalue of the symmetric part of a, well apart from the next."""
    return jnp.linalg.eigvalsh((a + a.T) / 2.0)[0]


def ground_state_fwd(a):
    """Keep its eigenvector."""
    values, vectors = jnp.linalg.eigh((a + a.T) / 2.0)
    return values[0], vectors[:, 0]


ground_state.defvjp(ground_state_fwd, lambda v, y_bar: (y_bar * jnp.outer(v, v),))


@jax.custom_vjp
def mahalanobis(x, factor):
    """‖l⁻¹ x‖² with a triangular l: only its lower half counts."""
    return jnp.sum(jax.scipy.linalg.solve_triangular(factor, x, lower=True) ** 2)


def mahalanobis_fwd(x, factor):
    """Keep l and the solution."""
    z = jax.scipy.linalg.solve_triangular(factor, x, lower=True)
    return jnp.sum(z**2), (factor, z)


def mahalanobis_bwd(residuals, y_bar):
    """x̄ = 2 l⁻ᵀ z ȳ;  l̄ = −tril(x̄ zᵀ)."""
    factor, z = residuals
    x_bar = jax.scipy.linalg.solve_triangular(factor, 2.0 * y_bar * z, lower=True, trans=1)
    return x_bar, -jnp.tril(jnp.outer(x_bar, z))


mahalanobis.defvjp(mahalanobis_fwd, mahalanobis_bwd)


OPERATIONS = (
    operation(cube, lambda rng: (normal(rng, 5),), hard=True, reference="cube_truth"),
    operation(take_row, lambda rng: (normal(rng, 5, 3), integers(rng, 5, 4)), hard=True),
    operation(nested, lambda rng: ({"a": [normal(rng, 3), normal(rng, 2)],
                                    "rest": (normal(rng, 3), normal(rng))}, normal(rng, 3)),
              hard=True),
    operation(unused_argument, lambda rng: (normal(rng, 4), normal(rng, 4)), hard=True),
    operation(with_indices, lambda rng: (normal(rng, 4, 5),), hard=True),
    operation(log_sum_exp, lambda rng: (normal(rng, 9, scale=100.0),), hard=True),
    operation(stable_sigmoid, lambda rng: (np.array([-80, -20, -1, 0.5, 20, 80], np.float32),),
              hard=True),
    operation(online_softmax, lambda rng: (normal(rng, 9, scale=5.0),), hard=True),
    operation(conjugate_gradients, lambda rng: (definite(rng, 6), normal(rng, 6)), hard=True,
              reference="conjugate_gradients_truth", tolerance=1e-4),
    operation(kepler, lambda rng: (uniform(rng, 0.1, 3.0, 6),), hard=True,
              reference="kepler_truth"),
    operation(straight_through, lambda rng: (normal(rng, 6, scale=3.0),), hard=True,
              reference="straight_through_truth", options={"expect": "straight-through"}),
    operation(reversed_gradient, lambda rng: (normal(rng, 6),), hard=True,
              reference="reversed_gradient_truth", options={"expect": -1.0}),
    operation(complex_product, lambda rng: (complex_normal(rng, 5), complex_normal(rng, 5)),
              hard=True),
    operation(phase, lambda rng: (complex_normal(rng, 5),), hard=True),
    operation(ground_state, lambda rng: (definite(rng, 4) + np.diag([-3, 0, 0, 0]).astype("f"),),
              hard=True),
    operation(mahalanobis, lambda rng: (normal(rng, 4), np.linalg.cholesky(definite(rng, 4))),
              hard=True),
)
