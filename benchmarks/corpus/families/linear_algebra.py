"""Products and solutions of linear systems."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax  # noqa: F401  (the faults have it)

from benchmarks.corpus.declare import definite, fault, normal, operation


@jax.custom_vjp
def dense(x, w, b):
    """x w + b, over leading axes of x."""
    return x @ w + b


def dense_fwd(x, w, b):
    """Keep x and w."""
    return x @ w + b, (x, w)


def dense_bwd(residuals, y_bar):
    """x̄ = ȳ wᵀ;  w̄ = xᵀ ȳ;  b̄ = Σ ȳ."""
    x, w = residuals
    x_bar = y_bar @ w.T
    w_bar = jnp.einsum("btd,bte->de", x, y_bar)
    b_bar = jnp.sum(y_bar, axis=(0, 1))
    return x_bar, w_bar, b_bar


dense.defvjp(dense_fwd, dense_bwd)

DENSE = operation(
    dense,
    lambda rng: (normal(rng, 2, 3, 4), normal(rng, 4, 4), normal(rng, 4)),
    fault("transpose", "x", "y_bar @ w.T", "y_bar @ w"),
    fault("transpose", "w", '"btd,bte->de"', '"btd,bte->ed"'),
    fault(("mean or sum", "factor"), ("w", "b"), "return x_bar, w_bar, b_bar",
          "return x_bar, w_bar / x.shape[0], b_bar / x.shape[0]"),
    fault(("mean or sum", "factor"), "b", "jnp.sum(y_bar, axis=(0, 1))",
          "jnp.mean(y_bar, axis=(0, 1))"),
    fault(("missing sum", "missing term"), "w", 'jnp.einsum("btd,bte->de", x, y_bar)',
          "x[0].T @ y_bar[0]"),
    fault(("structure", "missing sum"), "b", "jnp.sum(y_bar, axis=(0, 1))",
          "jnp.sum(y_bar, axis=0)"),
    fault(("extra term", "not linear"), "w", "return x_bar, w_bar, b_bar",
          "return x_bar, w_bar + 1e-2 * w, b_bar"),
    fault(("factor", "mean or sum"), "b", "axis=(0, 1))", "axis=(0, 1)) / y_bar.size**0.5"),
    fault("wrong operand", "w", '"btd,bte->de", x, y_bar', '"btd,bte->de", x_bar, y_bar'),
    fault(("jit", "error"), "x", "x_bar = y_bar @ w.T",
          "x_bar = y_bar @ w.T if float(jnp.max(jnp.abs(w))) > 0 else jnp.zeros_like(x)"),
    fault(("structure", "permutation"), ("w", "b"), "return x_bar, w_bar, b_bar",
          "return x_bar, b_bar, w_bar"),
    also={
        "large batch": lambda rng: (normal(rng, 2, 30000, 4), normal(rng, 4, 4), normal(rng, 4)),
        "huge": lambda rng: (normal(rng, 2, 3, 4, scale=1e15), normal(rng, 4, 4, scale=1e15),
                             normal(rng, 4)),
    },
)


@jax.custom_vjp
def bilinear(x, w, y):
    """z_k = xᵀ w_k y."""
    return jnp.einsum("i,kij,j->k", x, w, y)


def bilinear_fwd(x, w, y):
    """Keep the operands."""
    return jnp.einsum("i,kij,j->k", x, w, y), (x, w, y)


def bilinear_bwd(residuals, z_bar):
    """Each operand's cotangent is the product of the others and z̄."""
    x, w, y = residuals
    mixed = jnp.einsum("k,kij->ij", z_bar, w)
    x_bar = mixed @ y
    y_bar = mixed.T @ x
    w_bar = jnp.einsum("k,i,j->kij", z_bar, x, y)
    return x_bar, w_bar, y_bar


bilinear.defvjp(bilinear_fwd, bilinear_bwd)

BILINEAR = operation(
    bilinear,
    lambda rng: (normal(rng, 4), normal(rng, 3, 4, 4), normal(rng, 4)),
    fault("transpose", "y", "mixed.T @ x", "mixed @ x"),
    fault(("transpose", "permutation"), "w", '"k,i,j->kij", z_bar, x, y',
          '"k,i,j->kij", z_bar, y, x'),
    fault("wrong operand", "x", "mixed @ y", "mixed @ x"),
    fault(("permutation", "wrong operand"), ("x", "y"), "return x_bar, w_bar, y_bar",
          "return y_bar, w_bar, x_bar"),
    fault("not linear", "w", '"k,i,j->kij", z_bar, x', '"k,i,j->kij", jnp.tanh(z_bar), x'),
    fault(("not linear", "missing sum"), ("x", "y"), 'jnp.einsum("k,kij->ij", z_bar, w)',
          "jnp.sum(z_bar) * jnp.sum(w, axis=0)"),
    fault("second order", ("x", "y", "w"), "x, w, y = residuals",
          "x, w, y = lax.stop_gradient(residuals)", order=2),
)


@jax.custom_vjp
def solve(a, b):
    """The x with a x = b."""
    return jnp.linalg.solve(a, b)


def solve_fwd(a, b):
    """Keep a and the solution."""
    x = jnp.linalg.solve(a, b)
    return x, (a, x)


def solve_bwd(residuals, x_bar):
    """b̄ = a⁻ᵀ x̄;  ā = −b̄ xᵀ."""
    a, x = residuals
    b_bar = jnp.linalg.solve(a.T, x_bar)
    a_bar = -jnp.outer(b_bar, x)
    return a_bar, b_bar


solve.defvjp(solve_fwd, solve_bwd)

SOLVE = operation(
    solve,
    lambda rng: (normal(rng, 4, 4) + 3 * np.eye(4, dtype=np.float32), normal(rng, 4)),
    fault("transpose", ("a", "b"), "jnp.linalg.solve(a.T, x_bar)", "jnp.linalg.solve(a, x_bar)"),
    fault("sign", "a", "-jnp.outer(b_bar, x)", "jnp.outer(b_bar, x)"),
    fault("transpose", "a", "jnp.outer(b_bar, x)", "jnp.outer(x, b_bar)"),
    fault("wrong operand", "a", "jnp.outer(b_bar, x)", "jnp.outer(x_bar, x)"),
    fault(("wrong operand", "wrong function"), ("a", "b"), "jnp.linalg.solve(a.T, x_bar)",
          "a.T @ x_bar"),
    fault("wrong operand", "a", "return x, (a, x)", "return x, (a, b)"),
    fault("second order", ("a", "b"), "a, x = residuals",
          "a, x = residuals\n    x = lax.stop_gradient(x)", order=2),
    also={
        "Hilbert matrix": lambda rng: (
            (1.0 / (1 + np.add.outer(range(5), range(5)))).astype(np.float32), normal(rng, 5)),
        "graded": lambda rng: (
            (np.diag(10.0 ** np.arange(-6, 6, 2)) + np.triu(normal(rng, 6, 6, scale=1e-7), 1))
            .astype(np.float32), normal(rng, 6)),
    },
)


@jax.custom_vjp
def inverse(a):
    """a⁻¹."""
    return jnp.linalg.inv(a)


def inverse_fwd(a):
    """Keep the inverse."""
    y = jnp.linalg.inv(a)
    return y, y


def inverse_bwd(y, y_bar):
    """ā = −yᵀ ȳ yᵀ."""
    return (-(y.T @ y_bar @ y.T),)


inverse.defvjp(inverse_fwd, inverse_bwd)

INVERSE = operation(
    inverse,
    lambda rng: (normal(rng, 4, 4) + 3 * np.eye(4, dtype=np.float32),),
    fault("transpose", "a", "y.T @ y_bar @ y.T", "y @ y_bar @ y"),
    fault("transpose", "a", "y.T @ y_bar @ y.T", "y.T @ y_bar @ y"),
    fault("transpose", "a", "y.T @ y_bar @ y.T", "(y.T @ y_bar @ y.T).T"),
    fault("sign", "a", "(-(y.T @", "((y.T @"),
    fault(("missing factor", "transpose"), "a", "y.T @ y_bar @ y.T", "y.T @ y_bar"),
    fault("wrong operand", "a", "return y, y", "return y, a"),
    fault("factor", "a", "(-(y.T @ y_bar @ y.T),)", "(-0.5 * (y.T @ y_bar @ y.T),)"),
)


@jax.custom_vjp
def log_determinant(a):
    """log |det a|."""
    return jnp.linalg.slogdet(a)[1]


def log_determinant_fwd(a):
    """Keep a."""
    return jnp.linalg.slogdet(a)[1], a


def log_determinant_bwd(a, y_bar):
    """ā = ȳ a⁻ᵀ."""
    return (y_bar * jnp.linalg.inv(a).T,)


log_determinant.defvjp(log_determinant_fwd, log_determinant_bwd)

LOG_DETERMINANT = operation(
    log_determinant,
    lambda rng: (normal(rng, 4, 4) + 3 * np.eye(4, dtype=np.float32),),
    fault("transpose", "a", "jnp.linalg.inv(a).T", "jnp.linalg.inv(a)"),
    fault("missing factor", "a", "y_bar * jnp.linalg.inv(a).T",
          "y_bar * jnp.linalg.det(a) * jnp.linalg.inv(a).T"),
    fault(("sign", "missing factor", "region"), "a", "y_bar * jnp.linalg.inv(a).T",
          "y_bar * jnp.sign(jnp.linalg.det(a)) * jnp.linalg.inv(a).T",
          elsewhere=lambda rng: (np.diag([-1.0, 1.0, 2.0, 3.0]).astype(np.float32)
                                 + 0.1 * normal(rng, 4, 4),)),
    fault("cotangent ignored", "a", "(y_bar * jnp", "(jnp"),
    fault("second order", "a", "jnp.linalg.inv(a).T", "jnp.linalg.inv(lax.stop_gradient(a)).T",
          order=2),
    fault(("precision", "extra term"), "a", "jnp.linalg.inv(a).T",
          "jnp.linalg.inv(a + 1e-7 * jnp.eye(4, dtype=a.dtype)).T"),
)


@jax.custom_vjp
def trace_of_product(a, b):
    """tr(a b) for square matrices, in n² operations."""
    return jnp.sum(a * b.T)


def trace_of_product_fwd(a, b):
    """Keep both."""
    return jnp.sum(a * b.T), (a, b)


def trace_of_product_bwd(residuals, y_bar):
    """ā = ȳ bᵀ;  b̄ = ȳ aᵀ."""
    a, b = residuals
    a_bar = y_bar * b.T
    b_bar = y_bar * a.T
    return a_bar, b_bar


trace_of_product.defvjp(trace_of_product_fwd, trace_of_product_bwd)

TRACE_OF_PRODUCT = operation(
    trace_of_product,
    lambda rng: (normal(rng, 4, 4), normal(rng, 4, 4)),
    fault("transpose", "a", "y_bar * b.T", "y_bar * b"),
    fault("wrong operand", "b", "y_bar * a.T", "y_bar * b.T"),
    fault("not linear", "b", "b_bar = y_bar * a.T", "b_bar = jnp.abs(y_bar) * a.T"),
    fault("factor", "a", "a_bar = y_bar * b.T", "a_bar = 1.000001 * y_bar * b.T"),
    fault("dtype", "b", "return a_bar, b_bar", "return a_bar, b_bar.astype(jnp.float16)"),
)


@jax.custom_vjp
def quadratic_form(x, a):
    """½ xᵀ a x, where a need not be symmetric."""
    return 0.5 * x @ a @ x


def quadratic_form_fwd(x, a):
    """Keep both."""
    return 0.5 * x @ a @ x, (x, a)


def quadratic_form_bwd(residuals, y_bar):
    """x̄ = ½ (a + aᵀ) x ȳ;  ā = ½ x xᵀ ȳ."""
    x, a = residuals
    x_bar = 0.5 * y_bar * (a @ x + a.T @ x)
    a_bar = 0.5 * y_bar * jnp.outer(x, x)
    return x_bar, a_bar


quadratic_form.defvjp(quadratic_form_fwd, quadratic_form_bwd)

QUADRATIC_FORM = operation(
    quadratic_form,
    lambda rng: (normal(rng, 5), normal(rng, 5, 5)),
    fault(("missing term", "transpose"), "x", "0.5 * y_bar * (a @ x + a.T @ x)", "y_bar * (a @ x)"),
    fault("factor", "a", "0.5 * y_bar * jnp.outer", "y_bar * jnp.outer"),
    fault("factor", "x", "0.5 * y_bar * (a @", "y_bar * (a @"),
    fault(("missing term", "entries"), "a", "jnp.outer(x, x)", "jnp.diag(x * x)"),
    fault("region", "x", "x_bar = 0.5 * y_bar * (",
          "x_bar = 0.5 * y_bar * jnp.minimum(1.0, 5.0 / jnp.linalg.norm(x)) * (",
          elsewhere=lambda rng: (normal(rng, 5, scale=20.0), normal(rng, 5, 5))),
    also={"definite, huge": lambda rng: (normal(rng, 5, scale=1e9),
                                         definite(rng, 5) * np.float32(1e12))},
)


@jax.custom_vjp
def pairwise_distance(x, y):
    """d_ij = ‖x_i − y_j‖."""
    return jnp.sqrt(jnp.sum((x[:, None] - y[None]) ** 2, axis=-1))


def pairwise_distance_fwd(x, y):
    """Keep the points and the distances."""
    d = jnp.sqrt(jnp.sum((x[:, None] - y[None]) ** 2, axis=-1))
    return d, (x, y, d)


def pairwise_distance_bwd(residuals, d_bar):
    """x̄_i = Σ_j d̄_ij (x_i − y_j)/d_ij;  ȳ_j is the opposite, summed over i."""
    x, y, d = residuals
    directions = (x[:, None] - y[None]) / d[..., None]
    pulls = d_bar[..., None] * directions
    return jnp.sum(pulls, axis=1), -jnp.sum(pulls, axis=0)


pairwise_distance.defvjp(pairwise_distance_fwd, pairwise_distance_bwd)

PAIRWISE_DISTANCE = operation(
    pairwise_distance,
    lambda rng: (normal(rng, 4, 3), normal(rng, 4, 3)),
    fault("sign", "y", "-jnp.sum(pulls, axis=0)", "jnp.sum(pulls, axis=0)"),
    fault("axis", "y", "-jnp.sum(pulls, axis=0)", "-jnp.sum(pulls, axis=1)"),
    fault("missing factor", ("x", "y"), "(x[:, None] - y[None]) / d[..., None]",
          "(x[:, None] - y[None])"),
    fault(("transpose", "permutation"), ("x", "y"), "d_bar[..., None] * directions",
          "d_bar.T[..., None] * directions"),
    fault(("mean or sum", "factor"), "x", "jnp.sum(pulls, axis=1), -",
          "jnp.mean(pulls, axis=1), -"),
    fault("factor", ("x", "y"), "/ d[..., None]", "/ (2.0 * d[..., None])"),
    also={"close": lambda rng: (1.0 + normal(rng, 4, 3, scale=1e-3),
                                1.0 + normal(rng, 4, 3, scale=1e-3))},
)
